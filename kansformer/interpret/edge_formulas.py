"""Formulas of learned functions, and splines projected onto them.

The layers of a ViT compute only base and spline. So a formula does not replace an edge; instead the
spline's coefficients become those with which base and spline together come closest to the formula,
by least squares at the recorded inputs. The model's architecture stays the same, and its accuracy
afterwards shows whether the formulas describe the edges. Outside the grid only the base acts.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.curve_fitting.candidates import Suggestion, fit_candidates
from kansformer.curve_fitting.expressions import curve_expression, ex_round
from kansformer.curve_fitting.function_library import FUNCTIONS, LIBRARY
from kansformer.interpret.edges import EdgeLayer, edge_layer, edge_terms
from models import splines
from models.kan import BASE_ACTIVATIONS, GroupKANLinear, KANLinear, activation_name
from models.kan_grid import check_writable
from models.vit_model import VisionTransformer

SAMPLES = 1000  # inputs to fit a formula to
FunctionIndex = tuple[int | None, int]  # (output, input) of an edge, or (None, group)


@dataclass(frozen=True)
class EdgeFormula:
    """A simple formula for a learned function: a·f(b·x + c) + d.

    One candidate for f is the layer's base activation. If it is chosen, the spline adds next to
    nothing.

    Attributes:
        block, layer: index of the block, and "fc1" or "fc2".
        target, source: output and input of the edge; or None and the index of a group.
        name, affine: f, a name in FUNCTIONS or of a base activation, such as "silu"; (a, b, c, d).
        r2: share of the function's variance that the formula explains, on the recorded inputs.
    """

    block: int
    layer: str
    target: int | None
    source: int
    name: str
    affine: tuple[float, float, float, float]
    r2: float

    def values(self, x: Tensor) -> Tensor:
        """The formula at x, of any shape."""
        a, b, c, d = self.affine
        if self.name in FUNCTIONS:
            return a * FUNCTIONS[self.name].evaluate(b * x + c) + d
        return a * BASE_ACTIVATIONS[self.name]()(b * x + c) + d

    def __str__(self) -> str:
        import sympy

        x = sympy.Symbol("x")
        if self.name not in FUNCTIONS:
            a, *_, d = self.affine
            return str(ex_round(sympy.Float(a) * sympy.Function(self.name)(x) + sympy.Float(d), 4))
        return str(ex_round(curve_expression(self.name, list(self.affine), x), 4))


def read_functions(
    model: VisionTransformer,
    block: int,
    layer: str,
    functions: Sequence[FunctionIndex],
    inputs: Tensor,
    library: Sequence[str] = LIBRARY,
) -> list[EdgeFormula]:
    """A formula for each of the given functions that is not constant.

    The formula with the lowest cost is chosen: each step in complexity has to reduce the error by
    a factor of ten.

    Args:
        functions: (output, input) of edges, or (None, group) in a group-KAN.
        inputs: (N, in) recorded inputs of the layer.
        library: names of candidate functions.

    Raises:
        ValueError: no such layer, or one without splines.
    """
    edges = _spline_layer(model, block, layer)
    functions = [f for f in functions if f[0] is None or isinstance(edges, KANLinear)]
    x, y = [], []
    for function in functions:
        samples = _sample_inputs(edges, function, inputs)
        base, spline = _parts(edges, function, samples)
        x.append(samples.double())
        y.append((base + spline).double())
    if not functions:
        return []
    formulas = []
    names = [name for name in library if name != "0"]
    candidates = fit_candidates(torch.stack(x), torch.stack(y), names)
    base_name = activation_name(edges.base_activation)
    for (target, source), suggestions, u, v in zip(functions, candidates, x, y, strict=True):
        if suggestions and base_name not in (None, "identity"):
            suggestions.append(_fit_base(str(base_name), u, v))
        if suggestions:  # a constant function has none
            best = min(suggestions, key=lambda s: s.cost)
            formulas.append(
                EdgeFormula(block, layer, target, source, best.name, best.affine, best.r2)
            )
    return formulas


@torch.no_grad()
def project_functions(
    model: VisionTransformer, formulas: Sequence[EdgeFormula], inputs: dict[tuple[int, str], Tensor]
) -> VisionTransformer:
    """A copy in which the splines of some edges, or groups, are projected onto their formulas.

    Args:
        inputs: recorded inputs (N, in) by block and layer, at which the fit is made.
    """
    check_writable(model)
    projected = copy.deepcopy(model)
    for formula in formulas:
        layer = _spline_layer(projected, formula.block, formula.layer)
        function = formula.target, formula.source
        x = _sample_inputs(layer, function, inputs[formula.block, formula.layer])
        row = formula.source
        knots = layer.grid[row : row + 1]
        k = layer.spline_order
        x = x[(x >= knots[0, k]) & (x <= knots[0, knots.shape[1] - k - 1])]
        if not len(x):
            continue
        base, _ = _parts(layer, function, x)
        target = formula.values(x.double()) - base.double()
        fitted = splines.fit_coefficients(x[:, None], target[:, None, None], knots, k)[0, 0]
        if isinstance(layer, GroupKANLinear):
            layer.spline_weight[row] = fitted.float()
            continue
        layer.spline_weight[formula.target, row] = fitted.float()
        if layer.enable_standalone_scale_spline:
            layer.spline_scaler[formula.target, row] = 1.0
    return projected


def _fit_base(name: str, x: Tensor, y: Tensor) -> Suggestion:
    """Fits a·base(x) + d to a curve with points x, y (N,)."""
    base = BASE_ACTIVATIONS[name]()(x)
    centerd = base - base.mean()
    a = float((centerd * y).sum() / centerd.square().sum().clamp_min(1e-300))
    d = float(y.mean() - a * base.mean())
    loss = float((y - a * base - d).square().mean() / y.var(correction=0))
    return Suggestion(name, (a, 1.0, 0.0, d), 1 - loss, loss, 1)


def _spline_layer(model: VisionTransformer, block: int, layer: str) -> KANLinear | GroupKANLinear:
    edges = edge_layer(model, block, layer)
    if not isinstance(edges, KANLinear | GroupKANLinear):
        raise ValueError(f"block {block} is an MLP: it has no learned functions")
    return edges


def _sample_inputs(
    layer: KANLinear | GroupKANLinear, function: FunctionIndex, inputs: Tensor
) -> Tensor:
    """Up to SAMPLES inputs of a function, evenly spaced over the record, (N,)."""
    recorded = layer.spline_inputs(inputs)[:, function[1]]
    return recorded[:: max(len(recorded) // SAMPLES, 1)][:SAMPLES]


def _parts(layer: EdgeLayer, function: FunctionIndex, x: Tensor) -> tuple[Tensor, Tensor]:
    """Base and spline of a function at x (N,), each (N,)."""
    target, source = function
    column = source
    if isinstance(layer, GroupKANLinear):
        column = source * layer.in_features // layer.groups
    filled = x.new_zeros(len(x), layer.in_features)
    filled[:, column] = x
    features, weights = edge_terms(layer, filled)
    parts = features[:, column]
    if target is not None:
        parts = parts * weights[target, column]
    return parts[:, 0], parts[:, 1:].sum(dim=1)
