"""All of a group-KAN layer on a CPU, functions and weights, by group_kernels.cpp."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from models import native, splines
from models.kan_kernels import DENSE_KNOTS


def library_for(
    knots: Tensor, pieces: Tensor, activation: str | None, compiled: bool
) -> ctypes.CDLL | None:
    """The functions of group_kernels.cpp for a layer, or None where they cannot be had.

    Args: as of `group_features.make_group_kernel`.
    """
    M, order = knots.shape[1], pieces.shape[2] - 1
    if not compiled or knots.device.type != "cpu" or M > DENSE_KNOTS:
        return None
    return native.kernels("group", knots.dtype, order, M, activation)


def forward(
    library: ctypes.CDLL,
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The layer, (N, in) -> (N, out), in the dtype of knots and pieces.

    Args:
        library: of `library_for`, for that dtype.

    Raises:
        ValueError: tensors are on several devices.
    """
    x, weight = (native.as_given(tensor, knots.dtype) for tensor in (x, weight))
    bias = None if bias is None else native.as_given(bias, knots.dtype)
    *layer, rows, parts = _sizes(x, knots, weight)
    y = x.new_empty(rows, len(weight))
    if rows:
        parts, room = native.room(library, tuple(layer), rows, parts, x)
        given = *_layer(knots, pieces), x, weight, bias, room
        native.call(library.group_forward, (*layer, rows, parts), *given, y)
    return y


def backward(
    library: ctypes.CDLL, grad: Tensor, x: Tensor, knots: Tensor, pieces: Tensor, weight: Tensor
) -> list[Tensor]:
    """Gradients in x, pieces and weight from `grad` (N, out), in the dtype of knots and pieces."""
    grad, x, weight = (native.as_given(tensor, knots.dtype) for tensor in (grad, x, weight))
    if not len(x):
        return [torch.zeros_like(tensor) for tensor in (x, pieces, weight)]
    *layer, rows, parts = _sizes(x, knots, weight)
    parts, room = native.room(library, tuple(layer), rows, parts, x, sums=True)
    knots_used, steps, table = _layer(knots, pieces)
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    grad_table = x.new_empty(parts, *table.shape)
    given = knots_used, steps, table, x, weight, grad, room
    found = grad_x, grad_table, grad_weight
    native.call(library.group_backward, (*layer, rows, parts), *given, *found)
    grad_pieces = grad_table.sum(dim=0)[..., : pieces.shape[2]].contiguous()
    return [grad_x, grad_pieces, grad_weight]


def _sizes(x: Tensor, knots: Tensor, weight: Tensor) -> tuple[int, int, int, int, int]:
    """Sizes for the library; the last is into how many parts the rows may be divided."""
    (rows, width), groups = x.shape, len(knots)
    return groups, width // groups, len(weight), rows, native.parts(rows, weight.numel())


def _layer(knots: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Knots and their steps, if they are even, and the polynomials, padded to fours."""
    powers = pieces.shape[2]
    closed, steps = splines.remembered(native.places, knots, powers - 1)
    return closed, steps, F.pad(pieces, (0, -powers % 4)).contiguous()
