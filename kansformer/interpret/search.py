"""The whole walk at once: shapes of networks are tried, the simplest first, until one is exact."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kansformer.interpret.dataset import Dataset
from kansformer.interpret.fitting import fit, rmse
from kansformer.interpret.functions import LIBRARY
from kansformer.interpret.model import SymbolicKAN, Width
from kansformer.interpret.surgery import prune, refine
from kansformer.interpret.symbolic import EXACT, auto_symbolic


def default_shapes(inputs: int, outputs: int) -> list[list[Width]]:
    """From a sum of functions, over a function of it and a product, to two hidden layers."""
    last = outputs
    return [
        [inputs, last],
        [inputs, 1, last],
        [inputs, (0, 1), last],
        [inputs, 2, last],
        [inputs, (1, 1), last],
        [inputs, 2, 1, last],
        [inputs, 5, last],
    ]


def find_formula(
    dataset: Dataset,
    shapes: Sequence[Sequence[Width]] | None = None,
    *,
    grids: Sequence[int] = (3, 10),
    lamb: float = 3e-3,
    threshold: float = 0.03,
    steps: int = 30,
    restarts: int = 2,
    library: Sequence[str] = LIBRARY,
    seed: int = 0,
) -> SymbolicKAN:
    """Fits, prunes, refines and reads networks of several shapes; the first exact one is returned.

    Only the training half of the dataset is looked at. What is not found in any shape comes back
    as the network with the least error on training samples that its formula was not fitted to.

    Args:
        shapes: widths to try in turn, see `SymbolicKAN`; `default_shapes` unless given.
        grids: intervals of the first fit and of the refinements.
        lamb: of the first fit's regulariser.
        threshold: of `prune`, for nodes and edges.
        steps: of every fit.
        restarts: initial states to try for every shape.
        seed: of the first of them.

    Returns:
        A network with a `report`, see `auto_symbolic`.
    """
    x, y = dataset["train_input"], dataset["train_label"]
    shapes = default_shapes(x.shape[1], y.shape[1]) if shapes is None else shapes
    best: SymbolicKAN | None = None
    least = float("inf")
    for width in shapes:
        for restart in range(restarts):
            model = walk(dataset, width, grids, lamb, threshold, steps, library, seed + restart)
            error = rmse(model, x, y) / max(float(y.std(correction=0)), 1e-300)
            if best is None or error < least:
                best, least = model, error
            if least <= EXACT and not any(la.numeric().any() for la in best.layers):  # type: ignore
                return best
    assert best is not None
    return best


def walk(
    dataset: Dataset,
    width: Sequence[Width],
    grids: Sequence[int] = (3, 10),
    lamb: float = 3e-3,
    threshold: float = 0.03,
    steps: int = 30,
    library: Sequence[str] = LIBRARY,
    seed: int = 0,
) -> SymbolicKAN:
    """Fit with a regulariser, prune, fit, refine and fit again, read; see `find_formula`."""
    model = SymbolicKAN(width, seed=seed, grid_size=grids[0])
    quiet = {"steps": steps, "progress": False}
    fit(model, dataset, lamb=lamb, **quiet)
    model = prune(model, dataset, threshold, threshold)
    fit(model, dataset, **quiet)
    for grid in grids[1:]:
        model = refine(model, grid)
        fit(model, dataset, **quiet)
    return auto_symbolic(model, dataset, library)
