"""Grid refinement without a change of the functions."""

import torch
from torch import Tensor, nn

from kansformer.symbolic.symbolic_kan import SymbolicKAN
from models import kan_grid
from models.plain import plain


def refine(model: nn.Module, grid: int) -> SymbolicKAN:
    """Refines the grids of all layers to `grid` intervals; a copy that computes the same functions.

    The old knots are kept and each old interval is divided evenly, some into one interval more than
    others. `fit` makes the grids uniform again if it updates them.

    Raises:
        ValueError: fewer intervals than some layer has.
    """
    network, grid = SymbolicKAN.of(model), plain(grid)
    for layer in network.layers:
        kan = layer.kan
        if grid < kan.grid_size:
            raise ValueError(f"a grid of {grid} is coarser than the present {kan.grid_size}")
        kan_grid.change_grid(kan, _subdivided(kan.grid, kan.spline_order, grid))
    return network


def _subdivided(knots: Tensor, order: int, grid: int) -> Tensor:
    """Knots (in, M) with new ones between them, (in, grid + 2 · order + 1)."""
    last = knots.shape[1] - order - 1
    old = last - order
    cuts = [grid * (j + 1) // old - grid * j // old for j in range(old)]
    parts = [knots[:, :order]]
    for j, count in enumerate(cuts):
        left, right = knots[:, order + j, None], knots[:, order + j + 1, None]
        shares = torch.arange(count, dtype=knots.dtype, device=knots.device) / count
        parts.append(left + (right - left) * shares)
    return torch.cat([*parts, knots[:, last:]], dim=1)
