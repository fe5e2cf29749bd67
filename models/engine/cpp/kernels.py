"""A whole layer on a CPU by kan.cpp or group_kan.cpp: tables, memory, and the calls."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import splines
from ..definition import Weights
from ..eager import DENSE_KNOTS, POLYNOMIAL_ORDER
from ..fallback import warn_of_fallback
from ..memory import cached_table, workspace
from .build import library

FOLDER = Path(__file__).parent
C_TYPES = {torch.float32: "float", torch.float64: "double"}
PRODUCTS_OF_THREAD = 2**21  # that repay one
ROWS_OF_SUM, SUMS = 96, 2**26  # rows that repay a sum of gradients, and numbers in all sums


# ---- KAN layers ----


def kan_library(knots: Tensor, order: int, activation: str | None) -> ctypes.CDLL | None:
    """The functions of kan.cpp for a layer, or None where they are not to be used.

    Args:
        knots: (in, M), in the dtype to compute in.
        activation: a name in `definition.ACTIVATIONS`, or None where there is no base weight.
    """
    M = knots.shape[1]
    dense = M <= DENSE_KNOTS and order <= POLYNOMIAL_ORDER
    if knots.device.type != "cpu" or not dense:
        return None
    return _library("kan.cpp", knots.dtype, order, M, activation)


def kan_forward(
    library: ctypes.CDLL, x: Tensor, knots: Tensor, order: int, weights: Weights
) -> Tensor:
    """The layer, (N, in) -> (N, out), in the knots' dtype.

    Args:
        library: of `kan_library`, for that dtype.

    Raises:
        ValueError: tensors are on several devices, or of shapes that do not match.
    """
    x, *used = _all_contiguous(knots.dtype, x, *weights)
    width, out, rows, threads = _kan_sizes(x, knots, order, weights)
    y = x.new_empty(rows, out)
    if rows:
        threads, memory = _memory(library, (width, out), rows, threads, x)
        tables = cached_table(_kan_tables, knots, order)
        sizes = width, out, rows, threads
        _call(library.kan_forward, sizes, *tables, x, *used, memory, y)
    return y


def kan_backward(
    library: ctypes.CDLL,
    grad: Tensor,
    x: Tensor,
    knots: Tensor,
    order: int,
    weights: Weights,
    for_x: bool,
    for_weights: bool,
) -> list[Tensor]:
    """From `grad` (N, out) the gradient in x, if asked for, and then those in the weights."""
    wanted = [x] * for_x + weights.present * for_weights
    if not len(x):
        return [torch.zeros_like(tensor) for tensor in wanted]
    grad, x, *used = _all_contiguous(knots.dtype, grad, x, *weights)
    width, out, rows, threads = _kan_sizes(x, knots, order, weights)
    threads, memory = _memory(library, (width, out), rows, threads, x, sums=for_weights)
    grad_x = torch.empty_like(x) if for_x else None
    grads = [torch.empty_like(t) if t is not None and for_weights else None for t in used]
    tables = cached_table(_kan_tables, knots, order)
    inputs = *tables, x, *used, grad, memory
    _call(library.kan_backward, (width, out, rows, threads), *inputs, grad_x, *grads)
    results = [tensor for tensor in (grad_x, *grads) if tensor is not None]
    return [contiguous(result, like.dtype) for result, like in zip(results, wanted, strict=True)]


def _kan_sizes(x: Tensor, knots: Tensor, order: int, weights: Weights) -> tuple[int, int, int, int]:
    """Widths, rows, and the number of threads at most."""
    (rows, width), (out, *functions) = x.shape, weights.spline.shape
    if functions != [width, knots.shape[1] - order - 1]:
        raise ValueError(f"no spline weights for these knots: {tuple(weights.spline.shape)}")
    return width, out, rows, _threads(rows, weights.spline.numel())


def _kan_tables(knots: Tensor, order: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Knots (M, in), their steps (2, in) if they are uniform, and the polynomials per interval.

    The polynomials are padded to a multiple of four functions.
    """
    pieces = splines.local_pieces(knots.double(), order).to(knots.dtype)
    closed, steps = splines.closed_knots(knots, order)
    return closed.T.contiguous(), steps, F.pad(pieces, (0, -pieces.shape[-1] % 4)).contiguous()


# ---- group-KAN layers ----


def group_kan_library(knots: Tensor, pieces: Tensor, activation: str | None) -> ctypes.CDLL | None:
    """The functions of group_kan.cpp for a layer, or None where they are not to be used.

    Args:
        knots: (groups, M), in the dtype to compute in.
        pieces: (groups, M + 1, order + 1), see `definition.group_functions`, in the same dtype.
        activation: a name in `definition.ACTIVATIONS`, or None.
    """
    M, order = knots.shape[1], pieces.shape[2] - 1
    if knots.device.type != "cpu" or M > DENSE_KNOTS:
        return None
    return _library("group_kan.cpp", knots.dtype, order, M, activation)


def group_kan_forward(
    library: ctypes.CDLL,
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The layer, (N, in) -> (N, out), in the dtype of knots and pieces.

    Args:
        library: of `group_kan_library`, for that dtype.

    Raises:
        ValueError: tensors are on several devices.
    """
    x, weight, bias = _all_contiguous(knots.dtype, x, weight, bias)
    *layer, rows, threads = _group_sizes(x, knots, weight)
    y = x.new_empty(rows, len(weight))
    if rows:
        threads, memory = _memory(library, tuple(layer), rows, threads, x)
        inputs = *_group_tables(knots, pieces), x, weight, bias, memory
        _call(library.group_kan_forward, (*layer, rows, threads), *inputs, y)
    return y


def group_kan_backward(
    library: ctypes.CDLL,
    grad: Tensor,
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    weight: Tensor,
    for_weight: bool,
) -> list[Tensor]:
    """Gradients in x, in pieces and, if asked for, in weight, in the dtype of knots and pieces.

    Args:
        grad: (N, out)
    """
    grad, x, weight = _all_contiguous(knots.dtype, grad, x, weight)
    if not len(x):
        return [torch.zeros_like(tensor) for tensor in (x, pieces, *[weight] * for_weight)]
    *layer, rows, threads = _group_sizes(x, knots, weight)
    threads, memory = _memory(library, tuple(layer), rows, threads, x, sums=True)
    tables = _group_tables(knots, pieces)
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight) if for_weight else None
    grad_table = x.new_empty(threads, *tables[2].shape)
    inputs = *tables, x, weight, grad, memory
    _call(
        library.group_kan_backward, (*layer, rows, threads),
        *inputs, grad_x, grad_table, grad_weight,
    )  # fmt: skip
    grad_pieces = grad_table.sum(dim=0)[..., : pieces.shape[2]].contiguous()
    return [grad_x, grad_pieces] + ([] if grad_weight is None else [grad_weight])


def _group_sizes(x: Tensor, knots: Tensor, weight: Tensor) -> tuple[int, int, int, int, int]:
    """Groups, channels of each, outputs, rows, and the number of threads at most."""
    (rows, width), groups = x.shape, len(knots)
    return groups, width // groups, len(weight), rows, _threads(rows, weight.numel())


def _group_tables(knots: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Knots, their steps if they are uniform, and the polynomials, padded to a multiple of four."""
    powers = pieces.shape[2]
    closed, steps = cached_table(splines.closed_knots, knots, powers - 1)
    return closed, steps, F.pad(pieces, (0, -powers % 4)).contiguous()


# ---- both ----


@cache
def _library(
    source: str, exact: torch.dtype, order: int, M: int, activation: str | None
) -> ctypes.CDLL | None:
    """The functions of a C++ file for these settings; None, with a warning, if that fails.

    Args:
        exact: type of the values, one of C_TYPES.
        order: of the splines.
        M: number of knots.
        activation: beside the splines, a name in `definition.ACTIVATIONS` or None.
    """
    base = (activation or "none").upper()
    try:
        return library(FOLDER / source, T=C_TYPES[exact], ORDER=order, M=M, BASE=base)
    except Exception as error:  # no compiler, no space for temporary files, ...
        warn_of_fallback(error)
        return None


def _call(function: Any, sizes: tuple[int, ...], *tensors: Tensor | None) -> None:
    """Calls a function with sizes and the addresses of contiguous tensors, null for None.

    Raises:
        ValueError: not all are on the CPU.
    """
    if not all(tensor is None or tensor.is_cpu for tensor in tensors):
        devices = sorted({str(tensor.device) for tensor in tensors if tensor is not None})
        raise ValueError(f"the tensors of a layer are on several devices: {', '.join(devices)}")
    if function.argtypes is None:
        function.argtypes = [ctypes.c_ssize_t] * len(sizes) + [ctypes.c_void_p] * len(tensors)
    function(*sizes, *[None if tensor is None else tensor.data_ptr() for tensor in tensors])


def _memory(
    library: ctypes.CDLL,
    sizes: tuple[int, ...],
    rows: int,
    threads: int,
    like: Tensor,
    sums: bool = False,
) -> tuple[int, Tensor]:
    """How many threads share the rows, and memory for the kernel.

    First in it are the packed weights, then what each thread needs and, with `sums`, each thread's
    sum of the weights' gradient, as large as the packed weights.

    Args:
        library: its `memory_needed` says how many numbers the packed weights need, and a thread.
        threads: at most.
        like: a tensor of the memory's dtype.
        sums: which cost memory and time, so that there may be fewer threads.
    """
    for_weights, for_thread = _memory_needed(library, sizes)
    if sums:
        threads = max(min(threads, rows // ROWS_OF_SUM, SUMS // for_weights), 1)
        for_thread += for_weights
    numbers = for_weights + threads * for_thread
    return threads, workspace.empty("memory", (numbers,), like, like.dtype)


@cache
def _memory_needed(library: ctypes.CDLL, sizes: tuple[int, ...]) -> tuple[int, int]:
    wanted = torch.empty(2, dtype=torch.int64, device="cpu")
    _call(library.memory_needed, sizes, wanted[:1], wanted[1:])
    for_weights, for_thread = wanted.tolist()
    return for_weights, for_thread


def _threads(rows: int, products: int) -> int:
    """How many threads should share these rows, with that many products each."""
    return max(min(torch.get_num_threads(), rows * products // PRODUCTS_OF_THREAD, rows), 1)


def contiguous(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as a kernel takes it: contiguous, and in that dtype."""
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor  # in a tenth of the time of what follows
    return tensor.to(dtype).contiguous()


def _all_contiguous(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else contiguous(tensor, dtype) for tensor in tensors]
