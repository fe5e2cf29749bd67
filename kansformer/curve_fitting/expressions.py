"""Formulas of curves as sympy expressions, in the form that reads best."""

import math
from typing import TYPE_CHECKING, Any

from kansformer.curve_fitting.function_library import FUNCTIONS

if TYPE_CHECKING:
    import sympy

ODD = {"tan", "tanh", "arcsin", "arctan"}


def curve_expression(name: str, affine: list[float], x: Any) -> Any:
    """a·f(b·x + c) + d as an expression.

    Scales and shifts are moved out of powers, roots, logarithms and exponentials, and a sine is
    written as a cosine if its phase is nearer to that.

    Args:
        name: of f, in FUNCTIONS.
        affine: a, b, c and d.
        x: a symbol or any other sympy expression.
    """
    import sympy

    a, b, c, d = (sympy.Float(p) for p in affine)
    function = FUNCTIONS[name]
    inner = sympy.Add(*(b * term for term in sympy.Add.make_args(x))) + c
    constant, rest = inner.as_coeff_Add()
    scale, unit = factor_out_scale(inner)
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
    a, phase = a * (-1) ** turns, phase - turns * math.pi  # now between -π/2 and π/2
    if abs(phase) <= math.pi / 4:
        return a * sympy.sin(rest + phase) + d
    quarter = math.copysign(math.pi / 2, phase)
    return math.copysign(1, phase) * a * sympy.cos(rest + (phase - quarter)) + d


def ex_round(expression: "sympy.Expr", digits: int = 4) -> "sympy.Expr":
    """Rounds the numbers in an expression to `digits` decimals; whole numbers become integers."""
    import sympy

    def rounded(number: Any) -> Any:
        value = round(float(number), digits)
        return sympy.Integer(int(value)) if value == int(value) else sympy.Float(value)

    return expression.xreplace({n: rounded(n) for n in expression.atoms(sympy.Float)})


def factor_out_scale(expression: Any) -> tuple[Any, Any]:
    """Splits a sum into a factor and a sum whose largest coefficient is 1."""
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
