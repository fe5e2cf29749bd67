"""Small networks and samples that several tests use."""

import math

import torch
from torch import Tensor, nn

from kansformer.symbolic import SymbolicKAN, create_dataset, fix_symbolic, prune_edge
from kansformer.symbolic.fitting import move_grids


def hello(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1] ** 2)


def box(count: int = 300, width: int = 2, seed: int = 0) -> Tensor:
    return create_dataset(lambda x: x.sum(dim=1), width, train_num=count, seed=seed)["train_input"]


def network(width: tuple = (2, 3, (1, 1), 2), **options: object) -> SymbolicKAN:
    """Random, with a cut edge, formulas and products."""
    model = SymbolicKAN(width, seed=3, grid_size=4, **options)
    with torch.no_grad():
        for layer in model.layers:
            layer.kan.spline_weight.normal_(0, 0.3)
    x = box(width=len(model.names))
    move_grids(model, x)
    model = prune_edge(model, x, cut=[(0, 1, 0)])
    model = fix_symbolic(model, 0, 0, 1, "sin", x)
    return fix_symbolic(model, 1, 1, 0, "tanh", x)


def assert_same(a: nn.Module, b: nn.Module, x: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=tolerance)
