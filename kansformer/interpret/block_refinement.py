"""Finer grids for the feed-forward blocks of a trained model."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from kansformer.interpret.edges import LAYERS, edge_layer
from models.kan import GroupKANLinear, KANLinear
from models.kan_grid import check_writable, refine_grid
from models.vit_model import VisionTransformer


def refine_blocks(
    model: VisionTransformer, grid_size: int, blocks: Sequence[int] | None = None
) -> VisionTransformer:
    """A copy with finer grids and the same functions.

    The functions are equal up to rounding if `grid_size` is a multiple of the present size, else a
    least-squares fit (see `models.kan_grid.refine_grid`).

    Args:
        grid_size: number of intervals.
        blocks: numbers of the blocks to refine; None for all.

    Raises:
        ValueError: no such block, an MLP, a size below the present one, or weights that are
            computed from other tensors.
    """
    config = model.config
    chosen = range(config.depth) if blocks is None else blocks
    if config.ffn == "mlp":
        raise ValueError("MLP blocks have no grids to refine")
    if not set(chosen) <= set(range(config.depth)):
        raise ValueError(f"there are blocks 0 to {config.depth - 1}, not {list(chosen)}")
    check_writable(model)
    made = copy.deepcopy(model)
    sizes = list(config.block_grids)
    for block in chosen:
        for name in LAYERS:
            layer = edge_layer(made, block, name)
            assert isinstance(layer, KANLinear | GroupKANLinear)
            refine_grid(layer, grid_size)
        sizes[block] = grid_size
    made.config = replace(config, grid_sizes=tuple(sizes))
    return made
