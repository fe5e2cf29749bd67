"""Expressions are rounded for reading."""

import sympy

from kansformer.curve_fitting.expressions import ex_round


def test_rounding_makes_whole_numbers_whole() -> None:
    x = sympy.Symbol("x")
    expression = sympy.Float(0.99999999) * x**2 + sympy.Float(1e-9) * x + sympy.Float(3.14159265)
    assert str(ex_round(expression)) == "x**2 + 3.1416"
    assert str(ex_round(expression, 1)) == "x**2 + 3.1"
