"""An edge can be fixed to the function that it computes, and back."""

import pytest
from torch import Tensor

from kansformer.symbolic import (
    FUNCTIONS,
    SymbolicKAN,
    create_dataset,
    fit,
    fix_symbolic,
    suggest_symbolic,
    unfix_symbolic,
)
from tests.kansformer.symbolic.networks import assert_same, box


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "0"])
def test_fixing_recovers_a_function_to_the_last_digits(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        return 0.6 * FUNCTIONS[name].evaluate(0.8 * x[:, 0] + 0.1) - 2

    dataset = create_dataset(f, 1, (0.1, 1), train_num=200, test_num=50)
    model = SymbolicKAN([1, 1], seed=0, grid_size=20, grid_range=(0, 1.1))
    fit(model, dataset, steps=10, progress=False)
    model = fix_symbolic(model, 0, 0, 0, name, dataset)
    history = fit(model, dataset, steps=60, progress=False)
    assert history["test_rmse"][-1] < 1e-12
    spline = unfix_symbolic(model, 0, 0, 0)
    assert not spline.layers[0].fixed.any()
    assert_same(spline, model, dataset["test_input"], 3e-3)


def test_suggestions_put_the_simplest_of_what_fits_first() -> None:
    x = box(200, 1)
    model = SymbolicKAN([1, 1], seed=0, grid_size=12)
    dataset = create_dataset(lambda x: 3 * x[:, 0] + 1, 1, train_num=200)
    fit(model, dataset, steps=10, progress=False)
    best = suggest_symbolic(model, 0, 0, 0, x)
    assert best[0].name == "x"
    assert best[0].r2 == pytest.approx(1)
