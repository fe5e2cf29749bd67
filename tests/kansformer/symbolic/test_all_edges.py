"""Laws of reading: where no function fits for sure, a spline stays and is reported."""

import math

import torch
from torch import Tensor

from kansformer.symbolic import (
    SymbolicKAN,
    auto_symbolic,
    create_dataset,
    fit,
    symbolic_formula,
)


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
