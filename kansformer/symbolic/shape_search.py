"""A search over network shapes, the simplest first, until one of them is an exact formula."""

import math
from collections.abc import Sequence

import torch

from kansformer.curve_fitting.function_library import LIBRARY
from kansformer.symbolic.all_edges import auto_symbolic
from kansformer.symbolic.dataset import Dataset
from kansformer.symbolic.fitting import fit, rmse
from kansformer.symbolic.pruning import prune
from kansformer.symbolic.refinement import refine
from kansformer.symbolic.symbolic_kan import SymbolicKAN, Width

# errors of splines, relative to the labels' spread
PROMISING = 0.02  # up to which formulas are tried
HOPELESS = 0.2  # on the first grid, above which finer grids are not tried
# Larger than the usual initial splines: with a [4, 2, 1, 1] network on a nested formula, 3 of 6
# seeds reached the right structure, against 0 of 4 with the usual ones.
INITIAL = {"scale_noise": 2.0, "scale_base": 0.3}


def default_shapes(inputs: int, outputs: int) -> list[list[Width]]:
    """Sums of functions, then functions of such sums and products, then two hidden layers."""
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
    """Fits, prunes and refines networks of several shapes until one is an exact formula.

    Only the training set is used. If no shape gives an exact formula, the network with the lowest
    error is read as far as possible, see `auto_symbolic`.

    Args:
        dataset: the samples.
        shapes: widths to try in turn, see `SymbolicKAN`; default: `default_shapes`.
        grids: number of intervals for the first fit and for each refinement.
        lambs: factors of the regularizer in the first fit; the restarts cycle through them.
        threshold: of `prune`, for nodes and edges.
        steps: for the first fit, and for all later ones.
        restarts: number of initial networks for each shape with hidden nodes or products.
        library: names of functions.
        names: of the inputs; default x_1, x_2, …
        seed: of the first restart; the others use the next integers.

    Returns:
        A network with a `report`, see `auto_symbolic`.

    Raises:
        ValueError: no shapes or restarts, or arguments that `SymbolicKAN` or `fit` reject.
    """
    x, y = dataset["train_input"], dataset["train_label"]
    if shapes is None:
        shapes = default_shapes(x.shape[1], y.shape[1])
    if not shapes or restarts < 1:
        raise ValueError("there must be a shape, and a start, to try")
    spread = float(y.std(correction=0))
    if spread <= 1e-12 * float(y.abs().max()):
        spread = 1.0  # constant labels
    # labels of unit variance, so that the regularizer has the same weight for all functions
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
    """A spline network: fitted with the regularizer, pruned, then refined and fitted again."""
    model = SymbolicKAN(width, seed=seed, names=names, grid_size=grids[0], **INITIAL)
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
    """Multiplies the outputs of a network by a factor, in place."""
    last = model.layers[-1]
    first = last.plain_sums
    rows = [*range(first), *range(first, last.out_features, 2)]  # one factor of each product
    with torch.no_grad():
        weight = last.weight()
        weight[rows] *= factor
        last.set_weight(weight)
        last.bias[rows] *= factor
        affine = last.affine.clone()
        affine[rows] *= affine.new_tensor([factor, 1.0, 1.0, factor])
        last.affine.copy_(affine)
    return model
