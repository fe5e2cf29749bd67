"""Data sets sampled from known functions, to test whether a network learns them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.plain import plain

Function = Callable[[Tensor], Tensor]


class Synthetic(NamedTuple):
    """Samples of a function, in float64."""

    x: Tensor  # (N, inputs)
    y: Tensor  # (N, 1), with noise


def _bumps(x: Tensor) -> Tensor:
    """A slow and a fast wave, and a steep step."""
    return torch.sin(torch.pi * x) + 0.3 * torch.sin(5 * torch.pi * x) + torch.tanh(20 * x - 8)


def _hello(x: Tensor) -> Tensor:
    """exp(sin(πx) + y²), the first example of Liu et al. (2024)."""
    return torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:].square())


def _additive(x: Tensor) -> Tensor:
    """A sum of functions of three inputs; two more inputs do not matter."""
    return torch.sin(torch.pi * x[:, :1]) + 2 * x[:, 1:2].square() + x[:, 2:3].abs()


def _product(x: Tensor) -> Tensor:
    """x·y, which is not a sum of functions of one input."""
    return x[:, :1] * x[:, 1:]


FUNCTIONS: dict[str, tuple[int, Function]] = {
    "bumps": (1, _bumps),
    "hello": (2, _hello),
    "product": (2, _product),
    "additive": (5, _additive),
}


def create_synthetic_dataset(
    function: str | Function,
    samples: int = 500,
    *,
    inputs: int | None = None,
    noise: float = 0.0,
    ranges: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
) -> Synthetic:
    """Draws inputs uniformly from a cube and evaluates a function on them.

    Args:
        function: a name in FUNCTIONS, or a function (N, inputs) -> (N, 1) or (N,).
        samples: number of samples.
        inputs: number of inputs of the function; not needed for a name.
        noise: standard deviation of the Gaussian noise on y, relative to that of y.
        ranges: lowest and highest value of each input.
        seed: seed of the samples; torch's global generator is not used.

    Raises:
        ValueError: an unknown name, a missing or wrong number of inputs, no samples, negative
            noise, an empty range, or a function whose result has another shape or is not finite.
    """
    samples, inputs, seed = plain((samples, inputs, seed))
    if isinstance(function, str):
        if function not in FUNCTIONS:
            raise ValueError(f"function must be one of {', '.join(FUNCTIONS)}, not {function!r}")
        count, function = FUNCTIONS[function]
        if inputs not in (None, count):
            raise ValueError(f"the function takes {count} inputs, not {inputs}")
    elif inputs is None or inputs < 1:
        raise ValueError("inputs must be the number of inputs of the function, at least 1")
    else:
        count = inputs
    if samples < 1 or not 0 <= noise < math.inf:
        raise ValueError(f"samples must be at least 1 and noise at least 0, not {samples}, {noise}")
    low, high = ranges
    if not low < high:
        raise ValueError(f"ranges must be (low, high) with low < high, not {ranges}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, count, generator=generator, dtype=torch.float64)
    x = low + (high - low) * x
    y = function(x)
    if y.shape not in ((samples,), (samples, 1)):
        raise ValueError(
            f"the function must return one value for each of {samples} samples, not shape"
            f" {tuple(y.shape)}"
        )
    y = y.reshape(samples, 1)
    if not y.isfinite().all():
        raise ValueError("the function is not finite everywhere in these ranges")
    if noise > 0:
        spread = y.std() if samples > 1 else y.new_zeros(())
        y = y + noise * spread * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return Synthetic(x, y)
