"""Candidates recover the function of a curve; a constant has none."""

import pytest
import torch

from kansformer.curve_fitting.candidates import fit_candidates
from kansformer.curve_fitting.function_library import FUNCTIONS, LIBRARY

X = torch.linspace(0.1, 1, 100, dtype=torch.float64)[None]


@pytest.mark.parametrize("name", LIBRARY)
def test_the_function_of_a_curve_is_recovered(name: str) -> None:
    a, b, c, d = 0.6, 0.8, 0.1, -2.0
    y = a * FUNCTIONS[name].evaluate(b * X + c) + d
    (suggestion,) = fit_candidates(X, y, [name])[0]
    assert suggestion.loss < 1e-12
    a, b, c, d = suggestion.affine
    torch.testing.assert_close(a * FUNCTIONS[name].evaluate(b * X + c) + d, y)


def test_curves_do_not_depend_on_each_other() -> None:
    library = ["x", "x^2", "exp", "sin"]
    y = torch.cat([X.sin(), X.square(), torch.ones_like(X)])
    together = fit_candidates(X.expand(3, -1), y, library)
    assert together[2] == []
    for suggestions, row in zip(together, y, strict=True):
        (alone,) = fit_candidates(X, row[None], library)
        losses = {s.name: s.loss for s in suggestions}
        assert losses == pytest.approx({s.name: s.loss for s in alone}, rel=1e-6, abs=1e-12)


def test_a_candidate_is_defined_on_all_inputs() -> None:
    for suggestion in fit_candidates(X - 0.5, (X - 0.5) ** 3, ["log", "sqrt", "1/x"])[0]:
        _, b, c, _ = suggestion.affine
        assert FUNCTIONS[suggestion.name].covers(b * (X - 0.5) + c).all()


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(ValueError, match="no function is called 'sinh'"):
        fit_candidates(X, X, ["sinh"])
