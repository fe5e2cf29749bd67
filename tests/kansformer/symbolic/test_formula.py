"""A formula computes what its network computes."""

import numpy as np
import pytest
import sympy

from kansformer.symbolic import FUNCTIONS, SymbolicKAN, fix_symbolic, symbolic_formula
from tests.kansformer.symbolic.networks import box


@pytest.mark.parametrize("name", FUNCTIONS)
def test_formulas_evaluate_as_the_network_does(name: str) -> None:
    model = SymbolicKAN([2, 2, 1], seed=0, names=["u", "v"])
    rng = np.random.default_rng(0)
    for layer, source, target in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)):
        affine = [float(p) for p in rng.uniform(0.2, 0.6, 4)]
        model = fix_symbolic(model, layer, source, target, "x", affine=affine)
    for source, affine in ((0, (0.4, 0.2, 0.3, 0.1)), (1, (-0.7, -0.3, 0.9, 0.2))):
        model = fix_symbolic(model, 1, source, 0, name, affine=affine)
    x = box() / 4
    formula = symbolic_formula(model)[0]
    values = sympy.lambdify(sympy.symbols("u v"), formula)(*x.T.numpy())
    np.testing.assert_allclose(values, model(x).detach()[:, 0], rtol=1e-10, atol=1e-10)
