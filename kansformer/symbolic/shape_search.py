"""The whole walk at once: shapes of networks are tried, the simplest first, until one is exact."""

import math
from collections.abc import Sequence

import torch

from kansformer.curve_fitting.function_library import LIBRARY
from kansformer.symbolic.all_edges import auto_symbolic
from kansformer.symbolic.dataset import Dataset
from kansformer.symbolic.fitting import fit, rmse
from kansformer.symbolic.pruning import prune, refine
from kansformer.symbolic.symbolic_layer import SymbolicKAN, Width

PROMISING = 0.02  # an error of splines, in units of the labels' spread, that is worth reading
HOPELESS = 0.2  # one on the first grid that a finer one will not mend
# More curved than a KAN's usual start: of [4, 2, 1, 1] on a nested formula 3 in 6 starts ended at
# its structure, against 0 in 4.
START = {"scale_noise": 2.0, "scale_base": 0.3}


def default_shapes(inputs: int, outputs: int) -> list[list[Width]]:
    """From sums of functions, over functions of one and products, to two hidden layers."""
    return [
        [inputs, outputs],
        [inputs, 1, outputs],
        [inputs, (0, outputs)],
        [inputs, 2, outputs],
        [inputs, (1, 1), outputs],
        [inputs, 2, 1, outputs],
        [inputs, 5, outputs],
    ]


def find_formula(
    dataset: Dataset,
    shapes: Sequence[Sequence[Width]] | None = None,
    *,
    grids: Sequence[int] = (3, 10),
    lambs: Sequence[float] = (3e-3, 1e-3),
    threshold: float = 0.03,
    steps: Sequence[int] = (40, 20),
    restarts: int = 6,
    library: Sequence[str] = LIBRARY,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> SymbolicKAN:
    """Fits, prunes, refines and reads networks of several shapes; the first exact one is returned.

    Only the training half of the dataset is looked at. Where no shape is exact, the splines with
    the least error are read as far as they can be, see `auto_symbolic`.

    Args:
        shapes: widths to try in turn, see `SymbolicKAN`; `default_shapes` unless given.
        grids: intervals of the first fit and of the refinements.
        lambs: of the first fit's regulariser, for one restart after the other.
        threshold: of `prune`, for nodes and edges.
        steps: of the first fit and of the others.
        restarts: initial states to try for every shape that has hidden nodes or products.
        library: names of functions.
        names: of the inputs; default x_1, x_2, ...
        seed: of the first of them.

    Returns:
        A network with a `report`, see `auto_symbolic`.

    Raises:
        ValueError: no shapes or restarts, or what `SymbolicKAN` and `fit` refuse.
    """
    x, y = dataset["train_input"], dataset["train_label"]
    if shapes is None:
        shapes = default_shapes(x.shape[1], y.shape[1])
    if not shapes or restarts < 1:
        raise ValueError("there must be a shape, and a start, to try")
    spread = float(y.std(correction=0))
    if spread <= 1e-12 * float(y.abs().max()):
        spread = 1.0  # labels that are constant
    # labels of one size, so that the regulariser weighs the same for all functions
    scaled = Dataset(**{**dataset, "train_label": y / spread,
                        "test_label": dataset["test_label"] / spread})  # fmt: skip
    best: SymbolicKAN | None = None
    least = math.inf
    for width in shapes:
        convex = len(width) == 2 and isinstance(width[1], int)
        for restart in range(1 if convex else restarts):
            lamb = lambs[restart % len(lambs)]
            model = _splines(scaled, width, grids, lamb, threshold, steps, seed + restart, names)
            error = rmse(model, x, scaled["train_label"])
            if error < least:
                best, least = model, error
            if error < PROMISING:
                model = auto_symbolic(model, scaled, library, partial=False)
                if model.report:
                    return _rescaled(model, spread)
    assert best is not None
    return _rescaled(auto_symbolic(best, scaled, library), spread)


def _splines(
    dataset: Dataset,
    width: Sequence[Width],
    grids: Sequence[int],
    lamb: float,
    threshold: float,
    steps: Sequence[int],
    seed: int,
    names: Sequence[str] | None,
) -> SymbolicKAN:
    """A network fitted with a regulariser, pruned, refined and fitted again."""
    model = SymbolicKAN(width, seed=seed, names=names, grid_size=grids[0], **START)
    fit(model, dataset, steps=steps[0], lamb=lamb, progress=False)
    model = prune(model, dataset, threshold, threshold)
    fit(model, dataset, steps=steps[1], progress=False)
    for grid in grids[1:]:
        if rmse(model, dataset["train_input"], dataset["train_label"]) > HOPELESS:
            break
        model = refine(model, grid)
        fit(model, dataset, steps=steps[1], progress=False)
    return model


def _rescaled(model: SymbolicKAN, factor: float) -> SymbolicKAN:
    """The network with its outputs multiplied, in place."""
    last = model.layers[-1]
    plain = last.out_features - 2 * last.products
    rows = [*range(plain), *range(plain, last.out_features, 2)]  # of each product one factor
    with torch.no_grad():
        weight = last.weight()
        weight[rows] *= factor
        last.set_weight(weight)
        last.bias[rows] *= factor
        affine = last.affine.clone()
        affine[rows] *= affine.new_tensor([factor, 1.0, 1.0, factor])
        last.affine.copy_(affine)
    return model
