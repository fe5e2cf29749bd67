"""Functions are those of sympy, finite everywhere, with exact slopes."""

import numpy as np
import pytest
import sympy
import torch

from kansformer.curve_fitting.function_library import FUNCTIONS, value_and_slopes


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_of_functions(name: str) -> None:
    x = torch.linspace(0.1, 0.8, 20, dtype=torch.float64)
    affine = torch.tensor([0.7, 0.9, 0.05, -0.3], dtype=torch.float64, requires_grad=True)
    value, slopes = value_and_slopes(name, x, affine)
    a, b, c, d = affine
    expected = a * FUNCTIONS[name].evaluate(b * x + c) + d
    torch.testing.assert_close(value, expected.detach())
    for n in (0, 7, 19):
        (grad,) = torch.autograd.grad(expected[n], affine, retain_graph=True)
        torch.testing.assert_close(slopes[n], grad)
    symbol = sympy.Symbol("x")
    formula = sympy.lambdify(symbol, FUNCTIONS[name].in_sympy(symbol))(x.numpy())
    np.testing.assert_allclose(FUNCTIONS[name].evaluate(x).numpy(), formula, rtol=1e-12)
    everywhere = torch.tensor([-1e300, -700, -1, 0, 1e-300, 1, 700, 1e300], dtype=torch.float64)
    if name not in ("x^2", "x^3", "x^4", "x^5"):
        assert FUNCTIONS[name].evaluate(everywhere).isfinite().all()
