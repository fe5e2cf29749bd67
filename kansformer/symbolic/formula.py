"""The formula that a network computes, as sympy knows formulas."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from kansformer.curve_fitting.function_library import FUNCTIONS
from kansformer.symbolic.symbolic_layer import SymbolicKAN, SymbolicLayer

if TYPE_CHECKING:
    import sympy

ODD = {"tan", "tanh", "arcsin", "arctan"}
EVEN = {"gaussian", "lorentzian"}


def symbolic_formula(model: nn.Module, names: Sequence[str] | None = None) -> "list[sympy.Expr]":
    """The formula of each output, with every digit of its numbers; see `ex_round`.

    Factors and shifts are moved to where they are read best: out of powers, roots, logarithms and
    exponentials, and sines are cosines where their phase says so. An edge that is still a spline
    is an undefined function, phi_l_i_o of layer, source and target.

    Args:
        names: of the inputs; those of the model unless given.

    Raises:
        ValueError: another number of names than inputs.
    """
    import sympy

    own = model if isinstance(model, SymbolicKAN) else SymbolicKAN.of(model)
    names = own.names if names is None else list(names)
    if len(names) != len(own.names):
        raise ValueError(f"{len(own.names)} names are needed, not {len(names)}")
    nodes: list[Any] = [sympy.Symbol(names[i]) for i in own.inputs.tolist()]
    for number, layer in enumerate(own.layers):
        sums = [_sum(layer, number, o, nodes) for o in range(layer.out_features)]
        plain = layer.out_features - 2 * layer.products
        nodes = sums[:plain]
        for first, second in zip(sums[plain::2], sums[plain + 1 :: 2], strict=True):
            (k, first), (m, second) = _unit(first), _unit(second)
            nodes.append(k * m * first * second)
    return nodes


def ex_round(expression: "sympy.Expr", digits: int = 4) -> "sympy.Expr":
    """The expression with its numbers rounded to `digits` decimals; whole ones become integers."""
    import sympy

    def rounded(number: Any) -> Any:
        value = round(float(number), digits)
        return sympy.Integer(int(value)) if value == int(value) else sympy.Float(value)

    return expression.xreplace({n: rounded(n) for n in expression.atoms(sympy.Float)})


def _sum(layer: SymbolicLayer, number: int, target: int, nodes: list[Any]) -> Any:
    import sympy

    total = sympy.Float(float(layer.bias[target]))
    for i, node in enumerate(nodes):
        if not layer.mask[target, i]:
            continue
        name = layer.names[target][i]
        if name is None:
            total += sympy.Function(f"phi_{number}_{i}_{target}")(node)
        else:
            total += edge_expression(name, layer.affine[target, i].tolist(), node)
    return total


def edge_expression(name: str, affine: list[float], node: Any) -> Any:
    """a·f(b·node + c) + d, in the form that reads best."""
    import sympy

    a, b, c, d = (sympy.Float(p) for p in affine)
    function = FUNCTIONS[name]
    inner = sympy.Add(*(b * term for term in sympy.Add.make_args(node))) + c
    constant, rest = inner.as_coeff_Add()
    scale, unit = _unit(inner)
    if name == "0":
        return d
    if name == "x":
        return _scaled(inner, a) + d
    if rest == 0:
        return a * function.in_sympy(inner) + d
    if isinstance(function.symbol, int):  # powers
        return a * scale**function.symbol * unit**function.symbol + d
    if name == "exp":
        return a * sympy.exp(constant) * sympy.exp(rest) + d
    if name == "log":
        return a * sympy.log(inner / abs(scale)) + d + a * sympy.log(abs(scale))
    if name == "sqrt":
        return a * sympy.sqrt(abs(scale)) * sympy.sqrt(inner / abs(scale)) + d
    if name == "abs":
        return a * abs(scale) * sympy.Abs(unit) + d
    if name == "gaussian":
        return a * sympy.exp(-(scale**2) * unit**2) + d
    if name == "lorentzian":
        return a / (1 + scale**2 * unit**2) + d
    sign = -1 if scale < 0 else 1
    if name in ODD:
        return a * sign * function.in_sympy(_scaled(inner, sign)) + d
    assert name in ("sin", "cos")
    a, rest, phase = a * sign, _scaled(rest, sign), float(constant) * sign
    if name == "cos":
        a, phase = a * sign, phase + math.pi / 2
    turns = round(phase / math.pi)
    a, phase = a * (-1) ** turns, phase - turns * math.pi  # now within a quarter turn
    if abs(phase) <= math.pi / 4:
        return a * sympy.sin(rest + phase) + d
    quarter = math.copysign(math.pi / 2, phase)
    return math.copysign(1, phase) * a * sympy.cos(rest + (phase - quarter)) + d


def _unit(expression: Any) -> tuple[Any, Any]:
    """A factor, and the sum that has 1 as its largest coefficient; their product is the sum."""
    import sympy

    _, rest = expression.as_coeff_Add()
    coefficients = [term.as_coeff_Mul()[0] for term in sympy.Add.make_args(rest)]
    scale = max(coefficients, key=abs)
    if not scale.is_number or scale == 0:
        return sympy.Float(1), expression
    return scale, _scaled(expression, 1 / scale)


def _scaled(expression: Any, factor: Any) -> Any:
    import sympy

    return sympy.Add(*(factor * term for term in sympy.Add.make_args(expression)))
