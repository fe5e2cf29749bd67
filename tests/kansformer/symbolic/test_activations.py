"""Activations are those of the forward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kansformer.symbolic.activations import run_layers
from tests.kansformer.symbolic.networks import box, network


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Tanh, nn.ELU])
def test_edges_sum_to_the_layers_output(activation: Callable[[], nn.Module]) -> None:
    model, x = network(base_activation=activation), box()
    y, layers = run_layers(model, x)
    torch.testing.assert_close(y, model(x), rtol=0, atol=1e-12)
    for part in layers:
        edges = part.layer.edge_values(part.x)
        sums = edges.sum(dim=2) + part.layer.bias
        torch.testing.assert_close(sums, part.sums, rtol=0, atol=1e-12)
        torch.testing.assert_close(part.deviations(), edges.std(dim=0), rtol=1e-9, atol=1e-9)
