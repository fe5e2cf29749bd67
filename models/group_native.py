"""All of a group-KAN layer on a CPU, functions and weights, by group_kernels.cpp."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from models import native, splines
from models.kan_features import workspace
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
    """
    x, weight = (tensor.to(knots.dtype).contiguous() for tensor in (x, weight))
    bias = None if bias is None else bias.to(knots.dtype).contiguous()
    y = x.new_empty(len(x), len(weight))
    if len(x):
        sizes, packed, room = _room(library, x, knots, weight)
        given = *_layer(knots, pieces), x, weight, bias
        native.call(library.group_forward, sizes, *given, packed, room, y)
    return y


def backward(
    library: ctypes.CDLL, grad: Tensor, x: Tensor, knots: Tensor, pieces: Tensor, weight: Tensor
) -> list[Tensor]:
    """Gradients in x, pieces and weight from `grad` (N, out)."""
    like = x, pieces, weight
    if not len(x):
        return [torch.zeros_like(tensor) for tensor in like]
    grad, x, weight = (tensor.to(knots.dtype).contiguous() for tensor in (grad, x, weight))
    sizes, packed, room = _room(library, x, knots, weight)
    layer = _layer(knots, pieces)
    sums = workspace.empty("moments", (len(room), len(packed)), x, x.dtype)
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    grad_table = x.new_empty(len(room), *layer[-1].shape)
    given = *layer, x, weight, grad, packed, room, sums, grad_x, grad_table, grad_weight
    native.call(library.group_backward, sizes, *given)
    grad_pieces = grad_table.sum(dim=0)[..., : pieces.shape[2]]
    found = grad_x, grad_pieces, grad_weight
    return [own.to(tensor.dtype) for own, tensor in zip(found, like, strict=True)]


def _room(
    library: ctypes.CDLL, x: Tensor, knots: Tensor, weight: Tensor
) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Sizes for the library, and memory for weights and for each part of the rows."""
    rows, width = x.shape
    layer = len(knots), width // len(knots), len(weight)
    wanted = torch.empty(2, dtype=torch.int64)
    native.call(library.group_room, layer, wanted[:1], wanted[1:])
    for_weights, for_rows = wanted.tolist()
    parts = min(native.parts(x.numel()), rows)
    packed = workspace.empty("weights", (for_weights,), x, x.dtype)
    room = workspace.empty("features", (parts, for_rows), x, x.dtype)
    return (*layer, rows, parts, for_rows), packed, room


def _layer(knots: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Knots and their steps, if they are even, and the polynomials, padded to fours."""
    powers = pieces.shape[2]
    closed, steps = splines.remembered(native.places, knots, powers - 1)
    return closed, steps, F.pad(pieces, (0, -powers % 4)).contiguous()
