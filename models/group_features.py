"""The functions of a group-KAN layer, one spline per group of channels, and ways to compute them.

A spline is evaluated as the polynomial of its interval, which takes few operations whatever the
number of basis functions. `group_functions` is the definition, in operations that autograd, export
and functional transforms know. The kernels compute the same for a block of rows without autograd,
and the gradients with it: `SelectKernel` on other devices than a CPU, through torch.compile;
`GatherKernel` without a compiler and for large grids. For a CPU see `group_native`.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models import kan_compile
from models.kan_features import ACTIVATIONS, workspace
from models.kan_kernels import DENSE_KNOTS


def group_functions(x: Tensor, knots: Tensor, pieces: Tensor, activation: str | None) -> Tensor:
    """φ(x) = b(x) + the spline of each channel's group, (..., in) -> (..., in).

    Args:
        x: (..., in); channels c·in / groups … belong to group c.
        knots: (groups, M).
        pieces: (groups, M + 1, order + 1) coefficients of the polynomials before the first knot,
            on each interval in x minus its first knot, and behind the last, lowest power first
            (see `splines.polynomial_pieces`).
        activation: b, a name in ACTIVATIONS; None leaves b out.

    All of one dtype. In operations that autograd and ONNX know.
    """
    grouped = x.unflatten(-1, (len(knots), -1))  # (..., groups, channels of a group)
    edges = knots.T[..., None]  # (M, groups, 1)
    place = grouped.clamp(edges[0], edges[-1])
    reached = [grouped >= edge for edge in edges[:-1].unbind()] + [grouped > edges[-1]]
    interval = torch.stack(reached).sum(dim=0)  # 0: before the first knot, M: behind the last
    group = torch.arange(len(knots), device=x.device)[:, None]
    mine = pieces[group, interval]  # (..., order + 1)
    starts = torch.cat([knots[:, :1], knots], dim=1)[group, interval]
    value = torch.zeros_like(place)
    for coefficient in reversed(mine.unbind(-1)):
        value = value * (place - starts) + coefficient
    value = value.flatten(-2)
    return value if activation is None else ACTIVATIONS[activation][0](x) + value


class GroupKernel(Protocol):
    """Computes blocks of rows; what it returns is valid until its next call."""

    def values(self, x: Tensor) -> Tensor:
        """φ(x), (rows, in) -> (rows, in)."""

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        """φ(x) and, from its gradient, that in the pieces; writes that in x into `grad_x`.

        What it gives for the pieces before the first knot and behind the last, which are zero, has
        no meaning.

        Shapes: x, grad and grad_x (rows, in).
        """


class GatherKernel:
    """Looks the polynomial of each value up; without a compiler, and for large grids."""

    def __init__(
        self, knots: Tensor, pieces: Tensor, activation: str | None, dtype: torch.dtype
    ) -> None:
        self.activation, self.dtype = activation, dtype
        self.table = pieces.permute(2, 0, 1).contiguous()  # (order + 1, groups, M + 1)
        self.starts = torch.cat([knots[:, :1], knots], dim=1)
        # the last interval is closed
        last = torch.nextafter(knots[:, -1:], knots.new_full((), torch.inf))
        self.edges = torch.cat([knots[:, :-1], last], dim=1)

    def values(self, x: Tensor) -> Tensor:
        interval, distance = self._places(x)
        value = self._polynomial(interval, distance, self.table)
        return self._with_base(x, value).to(self.dtype)

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        grad = grad.to(x.dtype)
        interval, distance = self._places(x)
        value = self._polynomial(interval, distance, self.table)
        powers = torch.arange(1, len(self.table)).to(self.table)[:, None, None]
        slope = self._polynomial(interval, distance, self.table[1:] * powers)
        torch.mul(self._in_rows(slope, x), grad, out=grad_x)
        if self.activation is not None:
            grad_x += ACTIVATIONS[self.activation][1](grad, x)
        weighted = self._in_groups(grad)
        moments = torch.zeros_like(self.table)
        for row in moments:
            row.scatter_add_(1, interval, weighted)
            weighted = weighted * distance
        return self._with_base(x, value).to(self.dtype), moments.permute(1, 2, 0)

    def _places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the interval, from 0 before the first knot, and distance from its start."""
        place = self._in_groups(x)
        interval = torch.searchsorted(self.edges, place, right=True)
        place = place.clamp(self.starts[:, :1], self.starts[:, -1:])  # infinities give no NaN
        return interval, place - self.starts.gather(1, interval)

    def _polynomial(self, interval: Tensor, distance: Tensor, table: Tensor) -> Tensor:
        value = torch.zeros_like(distance)
        for row in table.flip(0):
            value.mul_(distance).add_(row.gather(1, interval))
        return value

    def _with_base(self, x: Tensor, value: Tensor) -> Tensor:
        value = self._in_rows(value, x)
        return value if self.activation is None else ACTIVATIONS[self.activation][0](x) + value

    def _in_groups(self, x: Tensor) -> Tensor:
        """(rows, in) -> (groups, rows · channels of a group)."""
        groups = len(self.starts)
        return x.unflatten(1, (groups, -1)).transpose(0, 1).reshape(groups, -1).contiguous()

    def _in_rows(self, value: Tensor, like: Tensor) -> Tensor:
        """The inverse of `_in_groups`."""
        return value.view(len(value), len(like), -1).transpose(0, 1).reshape(like.shape)


def _polynomials(x: Tensor, place: Tensor, table: Tensor) -> tuple[list[Tensor], Tensor]:
    """Coefficients of the polynomial at each x, and the distance from its interval's start.

    All intervals in turn, each overwriting the last where x has reached it: this vectorises, and
    the compiler keeps it in registers.

    Shapes: x and place (rows, groups, channels), table (M, order + 2, groups, 1).
    """
    start, coefficients = table[0, 0], [torch.zeros_like(x)] * (table.shape[1] - 1)
    last = table[-1, 0]
    for row in table[:-1].unbind():
        knot, *own = row.unbind()
        reached = x >= knot
        start = torch.where(reached, knot, start)
        coefficients = [torch.where(reached, a, b) for a, b in zip(own, coefficients, strict=True)]
    coefficients = [torch.where(x > last, 0.0, c) for c in coefficients]
    return coefficients, place - start


def write_values(activation: str | None, x: Tensor, table: Tensor, out: Tensor) -> None:
    """Writes φ(x), all (rows, groups, channels), into `out`."""
    place = torch.minimum(torch.maximum(x, table[0, 0]), table[-1, 0])  # infinities give no NaN
    coefficients, distance = _polynomials(x, place, table)
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * distance + coefficient
    out.copy_(value if activation is None else ACTIVATIONS[activation][0](x) + value)


def write_gradients(
    activation: str | None, x: Tensor, table: Tensor, out: Tensor, grad: Tensor, grad_x: Tensor
) -> None:
    """The same, and from the gradient `grad` in φ that in x into `grad_x`."""
    place = torch.minimum(torch.maximum(x, table[0, 0]), table[-1, 0])
    coefficients, distance = _polynomials(x, place, table)
    value, slope = torch.zeros_like(x), torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        slope = slope * distance + value
        value = value * distance + coefficient
    grad = grad.to(x.dtype)
    base_slope = 0.0 if activation is None else ACTIVATIONS[activation][1](grad, x)
    out.copy_(value if activation is None else ACTIVATIONS[activation][0](x) + value)
    grad_x.copy_(base_slope + slope * grad)


def write_moments(order: int, x: Tensor, table: Tensor, grad: Tensor, moments: Tensor) -> None:
    """The gradient in the pieces by channel, ((M - 1)·(order + 1), groups, channels).

    Apart from `write_gradients`, since a compiler makes slower code of both together.
    """
    place = torch.minimum(torch.maximum(x, table[0, 0]), table[-1, 0])
    knots = table[:, 0].unbind()
    reached = [*(x >= knot for knot in knots[:-1]), x > knots[-1]]
    sums = []
    for knot, (above, beyond) in zip(knots, pairwise(reached), strict=False):
        weighted = torch.where(above & ~beyond, grad.to(x.dtype), 0.0)
        for _ in range(order + 1):
            sums.append(weighted.sum(dim=0))
            weighted = weighted * (place - knot)
    moments.copy_(torch.stack(sums))


@cache
def _compiled(
    order: int,
    activation: str | None,
    M: int,
    exact: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Callable[..., object], ...] | None:
    """The three functions above for these settings; None, with a warning, if that fails."""
    rows, groups, channels = 512, 8, 24  # typical
    x = torch.zeros(rows, groups, channels, dtype=exact, device=device)
    table = torch.zeros(M, order + 2, groups, 1, dtype=exact, device=device)
    out = torch.zeros_like(x, dtype=dtype)
    moments = torch.zeros((M - 1) * (order + 1), groups, channels, dtype=exact, device=device)
    first = [x, table, out]
    second = [*first, out.clone(), x.clone()]
    third = [x, table, out.clone(), moments]
    return kan_compile.all_compiled(
        kan_compile.Kernel(write_values, (activation,), first),
        kan_compile.Kernel(write_gradients, (activation,), second),
        kan_compile.Kernel(write_moments, (order,), third),
    )


class SelectKernel:
    """Tries the intervals in turn, by compiled functions."""

    def __init__(
        self,
        functions: tuple[Callable[..., object], ...],
        knots: Tensor,
        pieces: Tensor,
        activation: str | None,
        dtype: torch.dtype,
    ) -> None:
        self.write_values, self.write_gradients, self.write_moments = functions
        table = torch.cat([knots[..., None], pieces[:, 1:]], dim=2)
        self.table = table.permute(1, 2, 0)[..., None].contiguous()
        self.pieces = pieces
        self.dtype = dtype

    def values(self, x: Tensor) -> Tensor:
        out = workspace.empty("features", x.shape, x, self.dtype)
        self.write_values(self._grouped(x), self.table, self._grouped(out))
        return out

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        out = workspace.empty("features", x.shape, x, self.dtype)
        groups, places, powers = self.pieces.shape
        moments = x.new_empty((places - 2) * powers, groups, x.shape[1] // groups)
        given, seen = self._grouped(x), self._grouped(grad)
        self.write_gradients(given, self.table, self._grouped(out), seen, self._grouped(grad_x))
        self.write_moments(given, self.table, seen, moments)
        inner = moments.sum(dim=2).T.reshape(groups, places - 2, powers)
        return out, F.pad(inner, (0, 0, 1, 1))

    def _grouped(self, x: Tensor) -> Tensor:
        return x.view(len(x), len(self.pieces), -1)


def make_group_kernel(
    knots: Tensor, pieces: Tensor, activation: str | None, dtype: torch.dtype, compiled: bool
) -> GroupKernel:
    """The kernel for blocks of contiguous rows.

    Args:
        knots: (groups, M), in the dtype in which x comes and the functions are computed.
        pieces: (groups, M + 1, order + 1), see `group_functions`, in the same dtype.
        activation: a name in ACTIVATIONS, or None for functions without b(x).
        dtype: of the values that it gives, and of their gradient.
        compiled: whether to compile where that is possible and the grid is not large.
    """
    M, order, settings = knots.shape[1], pieces.shape[2] - 1, (knots, pieces, activation, dtype)
    if compiled and knots.device.type != "cpu" and M <= DENSE_KNOTS:
        functions = _compiled(order, activation, M, knots.dtype, dtype, knots.device)
        if functions is not None:
            return SelectKernel(functions, *settings)
    return GatherKernel(*settings)
