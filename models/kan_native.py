"""All of a KAN layer on a CPU, features times weights, by kan_kernels.cpp."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from models import native, splines
from models.kan_features import workspace
from models.kan_kernels import DENSE_KNOTS
from models.kan_weights import Weights

ORDER = 5  # polynomials of a higher degree lose digits that the recursion keeps


def library_for(
    knots: Tensor, order: int, activation: str | None, compiled: bool
) -> ctypes.CDLL | None:
    """The functions of kan_kernels.cpp for a layer, or None where they cannot be had.

    Args: as of `kan_kernels.make_kernel`.
    """
    M = knots.shape[1]
    if not compiled or knots.device.type != "cpu" or M > DENSE_KNOTS or order > ORDER:
        return None
    return native.kernels("kan", knots.dtype, order, M, activation)


def forward(
    library: ctypes.CDLL,
    x: Tensor,
    knots: Tensor,
    order: int,
    weights: Weights,
    exact: torch.dtype,
) -> Tensor:
    """The layer, (N, in) -> (N, out), in the dtype `exact`.

    Args:
        library: of `library_for`, for that dtype.
    """
    x, used = x.to(exact).contiguous(), _as(exact, weights)
    sizes = _sizes(x, weights)
    y = x.new_empty(len(x), len(weights.spline))
    if len(x):
        packed, room = _room(library, x, sizes)
        tables = splines.remembered(_tables, knots.to(exact), order)
        native.call(library.kan_forward, sizes, *tables, x, *used, packed, room, y)
    return y


def backward(
    library: ctypes.CDLL,
    grad: Tensor,
    x: Tensor,
    knots: Tensor,
    order: int,
    weights: Weights,
    exact: torch.dtype,
    for_x: bool,
    for_weights: bool,
) -> list[Tensor]:
    """From `grad` (N, out) the gradient in x, if asked for, and then those in the weights."""
    wanted = [x] * for_x + weights.present * for_weights
    if not len(x):
        return [torch.zeros_like(tensor) for tensor in wanted]
    rows, used = x.to(exact).contiguous(), _as(exact, weights)
    sizes = _sizes(rows, weights)
    packed, room = _room(library, rows, sizes)
    moments = workspace.empty("moments", (sizes[-1], *packed.shape), rows, exact)
    grad_x = torch.empty_like(rows) if for_x else None
    grads = [torch.empty_like(t) if t is not None and for_weights else None for t in used]
    tables = splines.remembered(_tables, knots.to(exact), order)
    given = *tables, rows, *used, grad.to(exact).contiguous(), packed, room
    native.call(
        library.kan_backward, sizes, *given, moments if for_weights else None, grad_x, *grads
    )
    found = [tensor for tensor in (grad_x, *grads) if tensor is not None]
    return [own.to(tensor.dtype) for own, tensor in zip(found, wanted, strict=True)]


def _room(
    library: ctypes.CDLL, x: Tensor, sizes: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """Memory for packed weights, and for features and sums of each part of the rows."""
    width, out, _, parts = sizes
    wanted = torch.empty(2, dtype=torch.int64)
    native.call(library.kan_room, (width, out), wanted[:1], wanted[1:])
    for_weights, for_rows = wanted.tolist()
    packed = workspace.empty("weights", (for_weights,), x, x.dtype)
    return packed, workspace.empty("features", (parts, for_rows), x, x.dtype)


def _sizes(x: Tensor, weights: Weights) -> tuple[int, int, int, int]:
    rows, width = x.shape
    return width, len(weights.spline), rows, min(native.parts(x.numel()), max(rows, 1))


def _as(exact: torch.dtype, weights: Weights) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(exact).contiguous() for tensor in weights]


def _tables(knots: Tensor, order: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Knots (M, in), their steps (2, in) if they are even, and the polynomials of each place.

    Those are padded to fours of functions.
    """
    pieces = splines.local_pieces(knots.double(), order).to(knots.dtype)
    closed, steps = native.places(knots, order)
    return closed.T.contiguous(), steps, F.pad(pieces, (0, -pieces.shape[-1] % 4)).contiguous()
