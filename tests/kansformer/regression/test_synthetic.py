"""Synthetic data sets."""

import pytest
import torch

from kansformer.regression import create_synthetic_dataset
from kansformer.regression.synthetic import FUNCTIONS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_name_gives_its_function(name: str) -> None:
    inputs, function = FUNCTIONS[name]
    x, y = create_synthetic_dataset(name, 200)
    assert x.shape == (200, inputs)
    assert y.shape == (200, 1)
    assert torch.equal(y, function(x))
    assert -1 <= x.min() < -0.9
    assert 0.9 < x.max() <= 1


def test_hello_is_the_papers_function() -> None:
    x, y = create_synthetic_dataset("hello", 10)
    expected = torch.exp(torch.sin(torch.pi * x[:, 0]) + x[:, 1] ** 2)
    torch.testing.assert_close(y[:, 0], expected)


def test_a_custom_function_may_return_a_flat_result() -> None:
    x, y = create_synthetic_dataset(lambda x: x.sum(dim=1), 30, inputs=4, ranges=(2, 3))
    assert torch.equal(y[:, 0], x.sum(dim=1))
    assert 2 <= x.min()
    assert x.max() <= 3


def test_noise_is_relative_to_the_spread() -> None:
    clean = create_synthetic_dataset("hello", 5000, seed=1)
    noisy = create_synthetic_dataset("hello", 5000, seed=1, noise=0.5)
    assert torch.equal(clean.x, noisy.x)
    ratio = (noisy.y - clean.y).std() / clean.y.std()
    assert float(ratio) == pytest.approx(0.5, rel=0.05)


def test_the_seed_decides_and_the_global_generator_is_not_used() -> None:
    state = torch.get_rng_state()
    first, second = (create_synthetic_dataset("bumps", 50, noise=0.1, seed=3) for _ in range(2))
    other = create_synthetic_dataset("bumps", 50, noise=0.1, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.y, second.y)
    assert not torch.equal(first.y, other.y)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"function": "none"}, "bumps, hello, product, additive, not 'none'"),
        ({"function": "hello", "inputs": 3}, "takes 2 inputs, not 3"),
        ({"function": torch.sin}, "number of inputs"),
        ({"function": torch.sin, "inputs": 2}, r"not shape \(500, 2\)"),
        ({"function": "hello", "samples": 0}, "at least 1"),
        ({"function": "hello", "noise": -1}, "noise at least 0"),
        ({"function": "hello", "noise": float("nan")}, "noise at least 0"),
        ({"function": torch.log, "inputs": 1}, "not finite everywhere"),
        ({"function": "hello", "ranges": (1, 1)}, "low < high"),
    ],
)
def test_bad_arguments_are_rejected_with_the_reason(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create_synthetic_dataset(**arguments)
