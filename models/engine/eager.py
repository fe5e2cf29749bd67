"""Kernels of torch's own operations, for blocks of rows, without autograd.

`UniformFeatures`, `RecursionFeatures` and `SparseFeatures` compute what `definition.kan_features`
defines, with the gradient in x: on uniform knots as shifted copies of one cardinal B-spline; on
others by the Cox–de Boor recursion; on large grids only the functions that are not zero.
`GroupFunctions` does so for `definition.group_functions`.

Features are laid out (rows, features, in), so that neighbors in memory differ in their knots only.
"""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from .. import splines
from .definition import ACTIVATIONS, inverse_of_gaps
from .memory import workspace

CACHED_VALUES = (
    2**19
)  # rows x knots x inputs that are computed at a time, so that they stay in the cache
DENSE_KNOTS = 24  # on more knots than this only the functions that are not zero are computed
POLYNOMIAL_ORDER = 5  # polynomials of a higher degree lose digits that the recursion keeps


def knot_table(knots: Tensor, order: int) -> Tensor:
    """What the kernels read of knots (in, M), as one tensor (rows, in).

    The M knots, then 1 / (knots[d:] - knots[:-d]) for d = 1 … order, then the largest number below
    the last knot.
    """
    knots = knots.T
    inverse = [inverse_of_gaps(knots[d:] - knots[:-d]) for d in range(1, order + 1)]
    before_last = torch.nextafter(knots[-1:], knots.new_full((), -torch.inf))
    return torch.cat([knots, *inverse, before_last])


def split_knot_table(table: Tensor, order: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """The parts of a knot table: knots (M, in), for d = 1 … order (M - d, in), and (in,)."""
    M = (len(table) - 1 + order * (order + 1) // 2) // (order + 1)
    knots, *inverse, before_last = table.split([M, *(M - d for d in range(1, order + 1)), 1])
    return knots, inverse, before_last[0]


def feature_buffer(
    rows: int, knots: Tensor, order: int, activation: str | None, dtype: torch.dtype
) -> Tensor:
    """Memory for the features of a block, (rows, features, in)."""
    width, M = knots.shape
    count = M - order - 1 + int(activation is not None)
    return workspace.empty("features", (rows, count, width), knots, dtype)


class FeatureKernel(Protocol):
    """Features of blocks of rows; what a call returns is valid until the next one."""

    def features(self, x: Tensor) -> Tensor:
        """(rows, features, in) of x (rows, in)."""

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
        """The features again; from their gradient `grad`, of that shape, writes that in x.

        Shapes: x and grad_x (rows, in), contiguous and of one dtype.
        """


def _few_at_a_time(rows: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The rows of all the tensors, `rows` at a time."""
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class RecursionFeatures:
    """The recursion over all functions at once, in place, for a few rows at a time."""

    def __init__(
        self, rows: int, knots: Tensor, order: int, activation: str | None, dtype: torch.dtype
    ) -> None:
        self.order, self.activation, self.dtype = order, activation, dtype
        self.knots, self.inverse, self.before_last = split_knot_table(
            knot_table(knots, order), order
        )
        width, M = knots.shape
        self.base = int(activation is not None)  # features before the splines
        self.rows = max(CACHED_VALUES // (M * width), 1) if knots.device.type == "cpu" else rows
        few = min(self.rows, rows)
        kind = knots, knots.dtype
        self.distance = workspace.empty("distance", (few, M, width), *kind)  # of x from each knot
        self.shares = workspace.empty("shares", (few, M, width), *kind)
        # flat, since each degree has one function fewer
        self.values = workspace.empty("values", (few * (M - 1) * width,), *kind)
        self.out = feature_buffer(rows, knots, order, activation, knots.dtype)

    def features(self, x: Tensor) -> Tensor:
        out = self.out[: len(x)]
        for few, part in _few_at_a_time(self.rows, x, out):
            self._compute(few, part)
        return out.to(self.dtype)

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
        out = self.out[: len(x)]
        grad_x.zero_()
        count = out.shape[1] - self.base
        tensors = x, out, grad[:, self.base :], grad_x
        for few, part, grad_part, total in _few_at_a_time(self.rows, *tensors):
            self._compute(few, part)
            if self.order > 0:
                shares = self.shares[: len(few), : count + 1]  # those of the last degree
                slopes = self.distance[: len(few), :count]
                torch.sub(shares[:, :-1], shares[:, 1:], out=slopes)
                torch.sum(slopes.mul_(grad_part), dim=1, out=total)
        grad_x.mul_(self.order)
        _add_base_gradient(grad_x, x, grad, self.activation)
        return out.to(self.dtype)

    def _compute(self, x: Tensor, out: Tensor) -> None:
        """Writes the features of x (rows, in); leaves distances and the last degree's shares."""
        rows, (M, width) = len(x), self.knots.shape
        if self.activation is not None:
            out[:, 0] = ACTIVATIONS[self.activation][0](x)

        def values(degree: int) -> Tensor:
            if degree == self.order:
                return out[:, self.base :]
            count = M - 1 - degree
            return self.values[: rows * count * width].view(rows, count, width)

        x = torch.where(x == self.knots[-1], self.before_last, x)[:, None]
        distance = torch.sub(x, self.knots, out=self.distance[:rows])
        reached = torch.ge(x, self.knots, out=self.shares[:rows])
        torch.sub(reached[:, :-1], reached[:, 1:], out=values(0))
        for degree, inverse in enumerate(self.inverse, start=1):
            count = M - degree
            shares = torch.mul(values(degree - 1), inverse, out=self.shares[:rows, :count])
            raised = torch.mul(distance[:, : count - 1], shares[:, :-1], out=values(degree))
            raised.addcmul_(distance[:, degree + 1 :], shares[:, 1:], value=-1)


class UniformFeatures:
    """All functions at once, as shifted copies of one on uniform knots, for a few rows at a time.

    With p_i = max((k + 1) / 2 - i - |u|, 0), at u steps from its middle a B-spline of order k is
    Σ_i (-1)^i C(k + 1, i) p_i^k / k!, over i ≤ k / 2 (Schoenberg, 1946). Takes fewer operations
    than the recursion.
    """

    def __init__(
        self,
        rows: int,
        knots: Tensor,
        order: int,
        activation: str | None,
        dtype: torch.dtype,
        steps: Tensor,
    ) -> None:
        """`steps` are `splines.uniform_steps` of the knots."""
        width, M = knots.shape
        self.order, self.activation, self.dtype = order, activation, dtype
        self.base = int(activation is not None)  # features before the splines
        self.unit = math.factorial(order) ** (-1 / order)  # of u, so that no sum has to be divided
        self.signed = [(-1.0) ** i * math.comb(order + 1, i) for i in range(order // 2 + 1)]
        # counted from a knot in the middle, where numbers are small and so exact
        self.origin, self.per_step = knots[:, M // 2].contiguous(), steps[1] * self.unit
        middles = torch.arange(M - order - 1).to(knots) + ((order + 1) / 2 - M // 2)
        self.middles = (middles[:, None] * self.unit).expand(-1, width).contiguous()
        self.half = knots.new_tensor((order + 1) / 2 * self.unit)
        self.rows = max(CACHED_VALUES // (M * width), 1)
        shape = min(self.rows, rows), *self.middles.shape
        kind = knots, knots.dtype
        self.distance = workspace.empty("distance", shape, *kind)  # u
        self.within = workspace.empty("within", shape, *kind)  # p
        self.powers = workspace.empty("powers", shape, *kind)  # p^(order - 1)
        self.slopes = workspace.empty("slopes", shape, *kind)
        self.out = feature_buffer(rows, knots, order, activation, knots.dtype)

    def features(self, x: Tensor) -> Tensor:
        out = self.out[: len(x)]
        for few, part in _few_at_a_time(self.rows, x, out):
            self._compute(few, part)
        return out.to(self.dtype)

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
        out = self.out[: len(x)]
        tensors = x, out, grad[:, self.base :], grad_x
        for few, part, grad_part, total in _few_at_a_time(self.rows, *tensors):
            self._compute(few, part, slopes=True)
            slopes = self.slopes[: len(few)]
            # functions fall from their middles on
            torch.copysign(slopes, self.distance[: len(few)], out=slopes).mul_(grad_part)
            torch.sum(slopes, dim=1, out=total)
        grad_x.mul_(self.per_step * -self.order)
        _add_base_gradient(grad_x, x, grad, self.activation)
        return out.to(self.dtype)

    def _compute(self, x: Tensor, out: Tensor, slopes: bool = False) -> None:
        """Writes the features of x (rows, in); if asked for, slopes but for sign and factors."""
        rows = len(x)
        if self.activation is not None:
            out[:, 0] = ACTIVATIONS[self.activation][0](x)
        scaled = ((x - self.origin) * self.per_step)[:, None]
        distance = torch.sub(scaled, self.middles, out=self.distance[:rows])
        within = torch.abs(distance, out=self.within[:rows])
        torch.sub(self.half, within, out=within)
        values = out[:, self.base :]
        for i, factor in enumerate(self.signed):
            if i == 0:
                powers = self._powers(within, self.slopes[:rows])
                torch.mul(powers, within, out=values)
                continue
            powers = self._powers(within.sub_(self.unit), self.powers[:rows])
            values.addcmul_(powers, within, value=factor)
            if slopes:
                self.slopes[:rows].add_(powers, alpha=factor)

    def _powers(self, within: Tensor, out: Tensor) -> Tensor:
        return torch.pow(within.clamp_(min=0), self.order - 1, out=out)


class SparseFeatures:
    """The order + 1 functions that are not zero, scattered among zeros."""

    def __init__(
        self, rows: int, knots: Tensor, order: int, activation: str | None, dtype: torch.dtype
    ) -> None:
        self.order, self.activation, self.dtype = order, activation, dtype
        self.padded = splines.padded_knots(knots, order)
        self.count = knots.shape[1] - order - 1
        self.base = int(activation is not None)
        # splines that belong to the padding come before and behind; b(x) overwrites one of them
        self.before = max(order, self.base)
        shape = (rows, self.before + self.count + order, len(knots))
        self.out = workspace.empty("features", shape, knots, dtype)

    def features(self, x: Tensor) -> Tensor:
        return self._compute(x)[0]

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
        out, span, slopes = self._compute(x)
        grad_x.zero_()
        for r, slope in enumerate(slopes):
            index = span - self.order + r
            grad_part = grad.gather(1, (index.clamp(0, self.count - 1) + self.base)[:, None])[:, 0]
            inside = (index >= 0) & (index < self.count)
            grad_x += torch.where(inside, slope * grad_part, 0.0)
        _add_base_gradient(grad_x, x, grad, self.activation)
        return out

    def _compute(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        out = self.out[: len(x)].zero_()
        span, values, slopes = splines.local_b_splines(x, self.padded, self.order)
        offsets = torch.arange(self.order + 1, device=x.device)[:, None]
        index = span[:, None] + (self.before - self.order) + offsets
        out.scatter_(1, index, torch.stack(values, dim=1).to(self.dtype))
        if self.activation is not None:
            out[:, self.before - 1] = ACTIVATIONS[self.activation][0](x)
        return out[:, self.before - self.base : self.before + self.count], span, slopes


def _add_base_gradient(grad_x: Tensor, x: Tensor, grad: Tensor, activation: str | None) -> None:
    if activation is not None:
        grad_x += ACTIVATIONS[activation][1](grad[:, 0].to(x.dtype), x)


class GroupKernel(Protocol):
    """φ of blocks of rows; what a call returns is valid until the next one."""

    def values(self, x: Tensor) -> Tensor:
        """φ(x), (rows, in) -> (rows, in)."""

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        """φ(x) and, from its gradient, that in the pieces; writes that in x into `grad_x`.

        The gradients in the pieces before the first knot and behind the last, which are constant,
        have no meaning.

        Shapes: x, grad and grad_x (rows, in).
        """


class GroupFunctions:
    """Looks up the polynomial of each value."""

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
        interval, distance = self._intervals(x)
        value = self._polynomial(interval, distance, self.table)
        return self._with_base(x, value).to(self.dtype)

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        grad = grad.to(x.dtype)
        interval, distance = self._intervals(x)
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

    def _intervals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the interval, from 0 before the first knot, and distance from its start."""
        grouped = self._in_groups(x)
        interval = torch.searchsorted(self.edges, grouped, right=True)
        grouped = grouped.clamp(self.starts[:, :1], self.starts[:, -1:])  # infinities give no NaN
        return interval, grouped - self.starts.gather(1, interval)

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
