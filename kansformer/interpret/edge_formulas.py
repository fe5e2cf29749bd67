"""Learned functions of a ViT's blocks as formulas: how well one fits, and what the model loses.

The layers of a ViT compute splines only. So a formula does not take an edge's place; the spline is
projected onto it instead: its coefficients become those by which base and spline together come
nearest to the formula at the recorded inputs. The model stays a KANsformer, and its accuracy
afterwards says whether the formulas are what the edges do. Outside the grid the base goes on alone.
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

SAMPLES = 1000  # inputs that a formula is fitted to
Place = tuple[int | None, int]  # (output, input) of an edge, or (None, group)


@dataclass(frozen=True)
class EdgeFormula:
    """The simplest function that does well on an edge: a·f(b·x + c) + d.

    One of the candidates is the layer's base activation itself, which says that the spline adds
    next to nothing.

    Attributes:
        block, layer: where.
        target, source: the edge from input `source`; target is None for the function of the group
            with the number `source`.
        name, affine: f, a name in FUNCTIONS or of a base activation, such as "silu";
            and (a, b, c, d).
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
    places: Sequence[Place],
    inputs: Tensor,
    library: Sequence[str] = LIBRARY,
) -> list[EdgeFormula]:
    """A formula for each of some edges, or of some groups in a group-KAN.

    Of all that fit, the one is taken whose complexity pays: a step must lower the error by ten.

    Args:
        places: (output, input) of edges, or (None, group).
        inputs: (N, in) recorded inputs of the layer.
        library: names of functions.

    Raises:
        ValueError: no such layer, or one without splines.
    """
    own = _spline_layer(model, block, layer)
    places = [place for place in places if place[0] is None or isinstance(own, KANLinear)]
    x, y = [], []
    for place in places:
        flowing = _flowing(own, place, inputs)
        base, spline = _parts(own, place, flowing)
        x.append(flowing.double())
        y.append((base + spline).double())
    if not places:
        return []
    formulas = []
    names = [name for name in library if name != "0"]
    found = fit_candidates(torch.stack(x), torch.stack(y), names)
    base_name = activation_name(own.base_activation)
    for (target, source), suggestions, u, v in zip(places, found, x, y, strict=True):
        if suggestions and base_name not in (None, "identity"):
            suggestions.append(_base_alone(str(base_name), u, v))
        if suggestions:  # none for a constant
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
        inputs: recorded inputs (N, in) by block and layer, where the fit counts.
    """
    check_writable(model)
    made = copy.deepcopy(model)
    for formula in formulas:
        layer = _spline_layer(made, formula.block, formula.layer)
        place = formula.target, formula.source
        x = _flowing(layer, place, inputs[formula.block, formula.layer])
        row = formula.source
        knots = layer.grid[row : row + 1]
        k = layer.spline_order
        x = x[(x >= knots[0, k]) & (x <= knots[0, knots.shape[1] - k - 1])]
        if not len(x):
            continue
        base, _ = _parts(layer, place, x)
        wanted = formula.values(x.double()) - base.double()
        fitted = splines.fit_coefficients(x[:, None], wanted[:, None, None], knots, k)[0, 0]
        if isinstance(layer, GroupKANLinear):
            layer.spline_weight[row] = fitted.float()
            continue
        layer.spline_weight[formula.target, row] = fitted.float()
        if layer.enable_standalone_scale_spline:
            layer.spline_scaler[formula.target, row] = 1.0
    return made


def _base_alone(name: str, x: Tensor, y: Tensor) -> Suggestion:
    """The base activation, times a factor, as the formula of a curve (N,)."""
    base = BASE_ACTIVATIONS[name]()(x)
    centred = base - base.mean()
    a = float((centred * y).sum() / centred.square().sum().clamp_min(1e-300))
    d = float(y.mean() - a * base.mean())
    loss = float((y - a * base - d).square().mean() / y.var(correction=0))
    return Suggestion(name, (a, 1.0, 0.0, d), 1 - loss, loss, 1)


def _spline_layer(model: VisionTransformer, block: int, layer: str) -> KANLinear | GroupKANLinear:
    own = edge_layer(model, block, layer)
    if not isinstance(own, KANLinear | GroupKANLinear):
        raise ValueError(f"block {block} is an MLP: it has no learned functions")
    return own


def _flowing(layer: KANLinear | GroupKANLinear, place: Place, inputs: Tensor) -> Tensor:
    """About SAMPLES of what flows into a function, spread over the record, (N,)."""
    flowing = layer.spline_inputs(inputs)[:, place[1]]
    return flowing[:: max(len(flowing) // SAMPLES, 1)][:SAMPLES]


def _parts(layer: EdgeLayer, place: Place, x: Tensor) -> tuple[Tensor, Tensor]:
    """Base and spline of a function at x (N,), each (N,)."""
    target, source = place
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
