"""Samples of a function, to fit a network to."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from models.plain import plain


class Dataset(TypedDict):
    """Inputs (N, n_var) and labels (N, outputs), to train on and to test on."""

    train_input: Tensor
    train_label: Tensor
    test_input: Tensor
    test_label: Tensor


def create_dataset(
    f: Callable[[Tensor], Tensor],
    n_var: int = 2,
    ranges: Sequence[float] | Sequence[Sequence[float]] = (-1, 1),
    train_num: int = 1000,
    test_num: int = 1000,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Dataset:
    """Draws places evenly from a box and computes a function there.

    Args:
        f: maps (N, n_var) to (N,) or (N, outputs).
        n_var: number of variables.
        ranges: (low, high) of every variable, or one such pair for each.
        train_num, test_num: how many samples; the draws are independent.
        seed: of an own generator; the global one is left alone.

    Raises:
        ValueError: a range that is empty, the wrong number of them, sizes that are not positive,
            or values of f that are not finite or have another shape.
    """
    n_var, train_num, test_num, seed = plain((n_var, train_num, test_num, seed))
    if min(n_var, train_num, test_num) < 1:
        raise ValueError(
            f"n_var, train_num and test_num must be positive: {n_var}, {train_num}, {test_num}"
        )
    box = torch.tensor(ranges, dtype=dtype, device="cpu")
    if box.shape not in ((2,), (n_var, 2)):
        raise ValueError(f"ranges must be (low, high), or one pair for each of {n_var} variables")
    low, high = box.expand(n_var, 2).unbind(-1)
    if not (low < high).all():
        raise ValueError(f"every range must be (low, high) with low < high, not {ranges}")
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, n_var, dtype=dtype, generator=generator, device="cpu")
        x = low + (high - low) * x
        with torch.no_grad():
            y = f(x)
        y = y[:, None] if y.ndim == 1 else y
        if y.ndim != 2 or len(y) != count:
            raise ValueError(f"f must map (N, {n_var}) to (N,) or (N, outputs), not {y.shape}")
        if not y.isfinite().all():
            raise ValueError("f is not finite everywhere on these ranges")
        return x, y.to(dtype)

    train_input, train_label = draw(train_num)
    test_input, test_label = draw(test_num)
    return Dataset(
        train_input=train_input,
        train_label=train_label,
        test_input=test_input,
        test_label=test_label,
    )
