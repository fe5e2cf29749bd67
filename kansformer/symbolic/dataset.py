"""Samples of a function: a dataset to fit a network to, and the part that methods may use."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from kansformer.symbolic.symbolic_kan import SymbolicKAN
from models.plain import plain

REFERENCE_SAMPLES = 1000


class Dataset(TypedDict):
    """Inputs (N, n_var) and labels (N, outputs) for training and for testing."""

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
    """Samples a function at points drawn uniformly from a box.

    Args:
        f: maps (N, n_var) to (N,) or (N, outputs).
        n_var: number of variables.
        ranges: (low, high) for all variables, or one such pair for each.
        train_num, test_num: number of samples; the two sets are independent.
        seed: for a separate generator; the global one is not used.

    Raises:
        ValueError: an empty range, a wrong number of ranges, sizes that are not positive, or values
            of f that are not finite or have a wrong shape.
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


def training_samples(model: SymbolicKAN, data: Dataset | Tensor | None) -> Tensor:
    """The samples (N, inputs) to compute scores and curves from.

    Of a dataset these are the training inputs; the test set is never used. A tensor is taken as it
    is. Without data, a Sobol sequence covers the grids of the first layer, the same in every call.

    Raises:
        ValueError: there are no samples, or some are not finite.
    """
    if isinstance(data, Tensor):
        x = data.reshape(-1, data.shape[-1])
    elif data is not None:
        x = data["train_input"]
    else:
        first = model.layers[0]
        k, grid = first.kan.spline_order, first.kan.grid
        sobol = torch.quasirandom.SobolEngine(len(grid))
        points = sobol.draw(REFERENCE_SAMPLES, dtype=grid.dtype)
        low, high = grid[:, k], grid[:, grid.shape[1] - k - 1]
        x = grid.new_zeros(REFERENCE_SAMPLES, len(model.names))
        x[:, model.inputs] = low + (high - low) * points.to(grid)
    if len(x) == 0 or not x.isfinite().all():
        raise ValueError("samples are needed, and finite ones")
    return x.detach().to(model.inputs.device)


def check_samples(model: SymbolicKAN, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Converts inputs and labels to the network's dtype and device.

    Shapes: x (N, inputs) and y (N, outputs), both unchanged.

    Raises:
        ValueError: shapes that do not match the network, or values that are not finite.
    """
    last = model.layers[-1]
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) == 0 or y.shape[1] != last.nodes:
        raise ValueError(
            f"inputs (N, {len(model.names)}) and labels (N, {last.nodes}) are needed, not"
            f" {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("inputs and labels must be finite")
    return x.to(last.affine), y.to(last.affine)
