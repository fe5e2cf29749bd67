"""Laws of reading: formulas are exact, and where none is, a spline stays and is reported."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor

from kansformer.symbolic import (
    FUNCTIONS,
    SymbolicKAN,
    auto_symbolic,
    create_dataset,
    ex_round,
    find_formula,
    fit,
    fix_symbolic,
    symbolic_formula,
)
from tests.conftest import ROOT
from tests.kansformer.symbolic.test_symbolic_kan import box


def test_the_example_ends_at_the_formula() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/hello_kan.py", "--seed", "0", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found.keys() == {"formula", "train_rmse", "test_rmse", "seconds"}
    assert found["formula"] == "exp(x_2**2 + sin(3.1416*x_1))"
    assert found["test_rmse"] <= 1e-12
    assert done.stderr == ""


def test_a_formula_is_found_among_shapes_without_help() -> None:
    dataset = create_dataset(lambda x: 30 * x[:, 0] * x[:, 1].cos(), 2, (-2, 2), 300, 100)
    model = find_formula(dataset, names=["u", "v"])
    assert str(ex_round(symbolic_formula(model)[0])) == "30*u*cos(v)"
    error = (model(dataset["test_input"]) - dataset["test_label"]).detach().abs().max()
    assert float(error) < 1e-10


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_constant_is_a_formula(value: float) -> None:
    dataset = create_dataset(lambda x: 0 * x[:, 0] + value, 2, train_num=100, test_num=50)
    model = find_formula(dataset)
    assert float(ex_round(symbolic_formula(model)[0])) == value
    assert model.edge_count() == 0


def test_a_function_outside_the_library_stays_a_spline_and_is_reported() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.sin(9 * x[:, 0]) * torch.exp(-(x[:, 0] ** 2)) + (2 * x[:, 1]).tanh()

    dataset = create_dataset(f, 2, train_num=300, test_num=50)
    model = SymbolicKAN([2, 1], seed=0, grid_size=20)
    before = fit(model, dataset, steps=20, progress=False)["test_rmse"][-1]
    model = auto_symbolic(model, dataset)
    reasons = {(e.source, e.target): (e.name, e.reason) for e in model.report}
    assert reasons[0, 0] == (None, "no function fits")
    assert reasons[1, 0] == ("tanh", "fixed")
    after = float((model(dataset["test_input"]) - dataset["test_label"]).detach().square().mean())
    assert math.sqrt(after) < 1.1 * before
    assert "phi_0_0_0(x_1)" in str(symbolic_formula(model)[0])
    assert "no function fits" in str(model.report[0])


def test_noise_does_not_hide_the_formula() -> None:
    noise = torch.Generator().manual_seed(0)

    def f(x: Tensor) -> Tensor:
        clean = torch.sin(3 * x[:, 0]) + x[:, 1] ** 2
        return clean + 0.05 * torch.randn(len(x), generator=noise, dtype=x.dtype)

    dataset = create_dataset(f, 2, train_num=500, test_num=50)
    model = SymbolicKAN([2, 1], seed=0, grid_size=5)
    fit(model, dataset, steps=20, progress=False)
    model = auto_symbolic(model, dataset)
    assert [edge.name for edge in model.report] == ["sin", "x^2"]


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


def test_equally_good_functions_are_reported_as_ambiguous() -> None:
    # over a piece this flat, cubes and roots and logarithms differ by less than the noise
    noise = torch.Generator().manual_seed(1)

    def f(x: Tensor) -> Tensor:
        return (x[:, 0] + 3).log() + 0.01 * torch.randn(len(x), generator=noise, dtype=x.dtype)

    dataset = create_dataset(f, 1, train_num=300, test_num=50)
    model = SymbolicKAN([1, 1], seed=0, grid_size=3)
    before = fit(model, dataset, steps=10, progress=False)["train_rmse"][-1]
    model = auto_symbolic(model, dataset, ["log", "sqrt", "tanh", "sin"])
    assert [(edge.name, edge.reason) for edge in model.report] == [(None, "ambiguous")]
    error = (model(dataset["train_input"]) - dataset["train_label"]).detach().square().mean()
    assert math.sqrt(error) < 1.05 * before


def test_rounding_makes_whole_numbers_whole() -> None:
    x = sympy.Symbol("x")
    expression = sympy.Float(0.99999999) * x**2 + sympy.Float(1e-9) * x + sympy.Float(3.14159265)
    assert str(ex_round(expression)) == "x**2 + 3.1416"
    assert str(ex_round(expression, 1)) == "x**2 + 3.1"
