"""One edge as a formula: suggestions for it, fixing it to one, and undoing that."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kansformer.curve_fitting.candidates import Suggestion, fit_candidates
from kansformer.curve_fitting.function_library import LIBRARY, function_named
from kansformer.symbolic.activations import run_layers
from kansformer.symbolic.dataset import Dataset, training_samples
from kansformer.symbolic.symbolic_kan import SymbolicKAN


def suggest_symbolic(
    model: nn.Module,
    layer: int,
    source: int,
    target: int,
    data: Dataset | Tensor | None = None,
    library: Sequence[str] = LIBRARY,
) -> list[Suggestion]:
    """Formulas for an edge, best first: a good fit by a simple function.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        layer, source, target: the edge.
        data: the samples at which the edge is evaluated, see `attribute`.
        library: names of functions.

    Raises:
        ValueError: no such edge, or an unknown function.
    """
    network = SymbolicKAN.of(model)
    network.layer_of_edge(layer, source, target)
    with torch.no_grad():
        _, layers = run_layers(network, training_samples(network, data))
        x = layers[layer].x
        y = layers[layer].layer.edge_values(x)[:, target, source]
    return sorted(fit_candidates(x[:, source][None], y[None], library)[0], key=lambda s: s.cost)


def fix_symbolic(
    model: nn.Module,
    layer: int,
    source: int,
    target: int,
    name: str,
    data: Dataset | Tensor | None = None,
    affine: Sequence[float] | None = None,
) -> SymbolicKAN:
    """A copy in which an edge computes a·f(b·x + c) + d, by default fitted to the edge as it is.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        layer, source, target: the edge.
        name: of f, in FUNCTIONS.
        data: the samples at which f is fitted, see `attribute`.
        affine: (a, b, c, d), instead of a fit.

    Raises:
        ValueError: no such edge or function, an edge that was removed, a function that is not
            defined on the samples, a constant edge, or `affine` is not four finite numbers.
    """
    network = SymbolicKAN.of(model)
    if not network.layer_of_edge(layer, source, target).mask[target, source]:
        raise ValueError(f"the edge of layer {layer} from {source} to {target} is cut")
    function_named(name)
    if affine is None:
        suggestions = suggest_symbolic(network, layer, source, target, data, (name,))
        if not suggestions:
            raise ValueError(
                f"{name} does not fit the edge, which is constant or not in its domain"
            )
        affine = suggestions[0].affine
    elif len(affine) != 4 or not all(map(math.isfinite, affine)):
        raise ValueError(f"affine must be four finite numbers (a, b, c, d), not {affine}")
    network.fix(layer, source, target, name, torch.tensor(affine, dtype=torch.float64))
    return network


def unfix_symbolic(model: SymbolicKAN, layer: int, source: int, target: int) -> SymbolicKAN:
    """A copy in which an edge computes the spline again that it had before it was fixed.

    Raises:
        ValueError: no such edge.
    """
    network = SymbolicKAN.of(model)
    network.layer_of_edge(layer, source, target)
    network.fix(layer, source, target, None)
    return network
