"""All of a KAN layer on a CPU, features times weights, by kan_kernels.cpp."""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models import native, splines
from models.kan_kernels import DENSE_KNOTS, POLYNOMIAL_ORDER
from models.kan_weights import Weights


def library_for(
    knots: Tensor, order: int, activation: str | None, compiled: bool
) -> ctypes.CDLL | None:
    """The functions of kan_kernels.cpp for a layer, or None where they cannot be had.

    Args: as of `kan_kernels.make_kernel`.
    """
    M = knots.shape[1]
    dense = M <= DENSE_KNOTS and order <= POLYNOMIAL_ORDER
    if not compiled or knots.device.type != "cpu" or not dense:
        return None
    return native.kernels("kan", knots.dtype, order, M, activation)


def forward(library: ctypes.CDLL, x: Tensor, knots: Tensor, order: int, weights: Weights) -> Tensor:
    """The layer, (N, in) -> (N, out), in the knots' dtype.

    Args:
        library: of `library_for`, for that dtype.

    Raises:
        ValueError: tensors are on several devices, or not of shapes that belong together.
    """
    x, *used = _as_given(knots.dtype, x, *weights)
    width, out, rows, parts = _sizes(x, knots, order, weights)
    y = x.new_empty(rows, out)
    if rows:
        parts, room = native.room(library, (width, out), rows, parts, x)
        tables = splines.remembered(_tables, knots, order)
        sizes = width, out, rows, parts
        native.call(library.kan_forward, sizes, *tables, x, *used, room, y)
    return y


def backward(
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
    grad, x, *used = _as_given(knots.dtype, grad, x, *weights)
    width, out, rows, parts = _sizes(x, knots, order, weights)
    parts, room = native.room(library, (width, out), rows, parts, x, sums=for_weights)
    grad_x = torch.empty_like(x) if for_x else None
    grads = [torch.empty_like(t) if t is not None and for_weights else None for t in used]
    tables = splines.remembered(_tables, knots, order)
    given = *tables, x, *used, grad, room
    native.call(library.kan_backward, (width, out, rows, parts), *given, grad_x, *grads)
    found = [tensor for tensor in (grad_x, *grads) if tensor is not None]
    return [native.as_given(own, like.dtype) for own, like in zip(found, wanted, strict=True)]


def _sizes(x: Tensor, knots: Tensor, order: int, weights: Weights) -> tuple[int, int, int, int]:
    """Sizes for the library; the last is into how many parts the rows may be divided."""
    (rows, width), (out, *functions) = x.shape, weights.spline.shape
    if functions != [width, knots.shape[1] - order - 1]:
        raise ValueError(f"no spline weights for these knots: {tuple(weights.spline.shape)}")
    return width, out, rows, native.parts(rows, weights.spline.numel())


def _as_given(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else native.as_given(tensor, dtype) for tensor in tensors]


def _tables(knots: Tensor, order: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Knots (M, in), their steps (2, in) if they are even, and the polynomials of each place.

    Those are padded to fours of functions.
    """
    pieces = splines.local_pieces(knots.double(), order).to(knots.dtype)
    closed, steps = native.places(knots, order)
    return closed.T.contiguous(), steps, F.pad(pieces, (0, -pieces.shape[-1] % 4)).contiguous()
