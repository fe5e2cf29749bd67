"""Refining changes no function."""

import pytest

from kansformer.symbolic import refine
from tests.kansformer.symbolic.networks import assert_same, box, network


@pytest.mark.parametrize("grid", [4, 7, 8, 10, 40])
def test_refining_keeps_the_function(grid: int) -> None:
    model, x = network(), box() * 1.3
    fine = refine(model, grid)
    assert all(layer.kan.grid_size == grid for layer in fine.layers)
    assert_same(fine, model, x)
    assert model.layers[0].kan.grid_size == 4
