"""Scaling, its inverse, and its storage in the model."""

import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import nn

from kansformer.regression import StandardizedModel, Standardizer

X = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1e-6, 1.0, 1e9]) + 5


@pytest.mark.parametrize(
    ("method", "other"),
    [("standard", StandardScaler()), ("min-max", MinMaxScaler(feature_range=(-1, 1)))],
)
def test_it_scales_as_scikit_learn_and_back(method: str, other: object) -> None:
    scaling = Standardizer(3, method).fit(X)
    z = scaling(X)
    expected = torch.from_numpy(other.fit_transform(X.numpy()))
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(scaling.inverse(z), X, rtol=1e-12, atol=0)
    assert scaling(X[None]).shape == (1, 50, 3)


@pytest.mark.parametrize("method", ["standard", "min-max"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e12])
def test_a_constant_column_becomes_zero(method: str, value: float) -> None:
    x = torch.full((20, 1), value, dtype=torch.float64)
    scaling = Standardizer(1, method).fit(x)
    assert (scaling(x).abs() < 1e-3).all()
    torch.testing.assert_close(scaling.inverse(scaling(x)), x)
    assert scaling.scale == 1


def test_a_small_spread_on_a_large_value_survives_32_bits() -> None:
    seconds = 1.7e9 + torch.arange(100, dtype=torch.float64)[:, None]
    scaling = Standardizer(1, "min-max").fit(seconds)
    assert scaling(seconds).unique().numel() == 100
    rounded = seconds.float()
    torch.testing.assert_close(scaling(rounded)[-1].double(), scaling(rounded.double())[-1])


def test_it_is_stored_with_the_model() -> None:
    def model() -> StandardizedModel:
        return StandardizedModel(Standardizer(3), nn.Linear(3, 2), Standardizer(2, "min-max"))

    first, second = model().double(), model().double()
    first.inputs.fit(X)
    first.outputs.fit(X[:, :2])
    expected = first.network((X - X.mean(0)) / X.std(0, correction=0))
    expected = expected * first.outputs.scale + first.outputs.shift
    torch.testing.assert_close(first(X), expected)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(X), second(X))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Standardizer(3, "robust"), "standard, min-max, not 'robust'"),
        (lambda: Standardizer(0), "at least one column"),
        (lambda: Standardizer(2).fit(X), r"samples must be \(N, 2\), not \(50, 3\)"),
        (lambda: Standardizer(3).fit(X[:0]), "samples must be"),
        (lambda: Standardizer(3).fit(X / 0), "must be finite"),
        (lambda: Standardizer(3).fit(X * 1e290), "too large"),
    ],
)
def test_bad_arguments_are_rejected_with_the_reason(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
