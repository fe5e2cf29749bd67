"""Scores equal the errors that define them."""

import pytest
import torch

from kansformer.interpret.block_activations import record
from kansformer.interpret.block_pruning import without_splines
from kansformer.interpret.block_scores import layer_facts, score_block, strongest
from tests.kansformer.interpret.test_edges import vit


def test_a_unit_score_is_the_error_of_replacing_it_by_its_mean() -> None:
    model = vit(kan_hidden=5)
    recorded = record(model, [torch.randn(40, 3, 8, 8)])[0]
    scores = score_block(model, 0, recorded)
    fc2 = model.get_submodule("blocks.0.mlp.fc2")
    for unit in range(5):
        column = [fc2.base_weight[:, unit].clone(), fc2.spline_weight[:, unit].clone()]
        full = fc2(recorded.hidden)
        with torch.no_grad():
            fc2.base_weight[:, unit] = 0
            fc2.spline_weight[:, unit] = 0
        gone = full - fc2(recorded.hidden)
        with torch.no_grad():
            fc2.base_weight[:, unit], fc2.spline_weight[:, unit] = column
        error = (gone - gone.mean(dim=0)).square().sum(dim=1).sum() / (len(gone) - 1)
        torch.testing.assert_close(scores.units[unit] ** 2, error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ffn", ["kan", "group-kan", "mlp"])
def test_facts_of_layers(ffn: str) -> None:
    model = vit(ffn=ffn)
    recorded = record(model, [torch.randn(40, 3, 8, 8)])[0]
    facts = layer_facts(model, 0, "fc1", recorded.inputs)
    bare = layer_facts(without_splines(model), 0, "fc1", recorded.inputs)
    assert bare.spline_energy == 0
    if ffn == "mlp":
        assert (facts.outside, facts.spline_energy) == (None, 0)
    else:
        assert 0 < facts.spline_energy < 1
        low, high = model.config.grid_range
        outside = ((recorded.inputs < low) | (recorded.inputs > high)).float().mean()
        assert facts.outside == pytest.approx(float(outside))


def test_strongest_edges_in_order() -> None:
    scores = torch.tensor([[5.0, 4.0, 1.0], [3.0, 2.0, 0.0]])
    assert strongest(scores, 3) == [(0, 0), (0, 1), (1, 0)]
    assert strongest(scores, 3, apart=True) == [(0, 0), (1, 1)]
