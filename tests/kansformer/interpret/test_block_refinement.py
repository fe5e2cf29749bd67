"""Refined grids change no function."""

import pytest
import torch

from kansformer.interpret.block_refinement import refine_blocks
from models.vit_model import VisionTransformer

PICTURES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_refined_grids_keep_the_functions(model: VisionTransformer) -> None:
    if model.config.ffn == "mlp":
        with pytest.raises(ValueError, match="no grids"):
            refine_blocks(model, 10)
        return
    finer = refine_blocks(model, 2 * model.config.grid_size, [0])
    assert finer.config.block_grids == (2 * model.config.grid_size, model.config.grid_size)
    torch.testing.assert_close(finer(PICTURES), model(PICTURES), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        refine_blocks(model, 20, [2])
