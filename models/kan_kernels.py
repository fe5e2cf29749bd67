"""Kernels for the features of a KAN layer, by block of rows, without autograd.

They compute what `kan_features.features` defines, and the gradient in x with it: `CompiledKernel`
on other devices than a CPU, through torch.compile; `EagerKernel` and, for even knots, `EvenKernel`
without a compiler, in buffers that stay in the processor's cache; `LocalKernel` for large grids,
which touches only the functions that are not zero. For a CPU see `kan_native`.

Features are laid out (rows, features, in), so that neighbours in memory differ in their knots only.
"""

import math
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from models import kan_compile, native, splines
from models.kan_features import ACTIVATIONS, inverse_of_gaps, workspace

CACHED_VALUES = 2**19  # per knot and input, that the eager kernel computes at a time
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


def _split(table: Tensor, order: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """The parts of a knot table: knots (M, in), for d = 1 … order (M - d, in), and (in,)."""
    M = (len(table) - 1 + order * (order + 1) // 2) // (order + 1)
    knots, *inverse, before_last = table.split([M, *(M - d for d in range(1, order + 1)), 1])
    return knots, inverse, before_last[0]


def _room(
    rows: int, knots: Tensor, order: int, activation: str | None, dtype: torch.dtype
) -> Tensor:
    """Space for the features of so many rows, (rows, features, in)."""
    width, M = knots.shape
    count = M - order - 1 + int(activation is not None)
    return workspace.empty("features", (rows, count, width), knots, dtype)


class Kernel(Protocol):
    """Computes blocks of rows; what it returns is valid until its next call."""

    def features(self, x: Tensor) -> Tensor:
        """(rows, features, in) of x (rows, in)."""

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
        """The features again; from their gradient `grad`, of that shape, writes that in x.

        Shapes: x and grad_x (rows, in), contiguous and of one dtype.
        """


def _few_at_a_time(rows: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors' rows, so many at a time."""
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class EagerKernel:
    """The recursion over all functions at once, in place, for a few rows at a time."""

    def __init__(
        self, rows: int, knots: Tensor, order: int, activation: str | None, dtype: torch.dtype
    ) -> None:
        self.order, self.activation, self.dtype = order, activation, dtype
        self.knots, self.inverse, self.before_last = _split(knot_table(knots, order), order)
        width, M = knots.shape
        self.base = int(activation is not None)  # features before the splines
        self.rows = max(CACHED_VALUES // (M * width), 1) if knots.device.type == "cpu" else rows
        few = min(self.rows, rows)
        kind = knots, knots.dtype
        self.distance = workspace.empty("distance", (few, M, width), *kind)  # of x from each knot
        self.shares = workspace.empty("shares", (few, M, width), *kind)
        # flat, since each degree has one function fewer
        self.values = workspace.empty("values", (few * (M - 1) * width,), *kind)
        self.out = _room(rows, knots, order, activation, knots.dtype)

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


class EvenKernel:
    """All functions at once, as one that is moved along even knots, for a few rows at a time.

    With p_i = max((k + 1) / 2 - i - |u|, 0), at u steps from its middle a B-spline of order k is
    Σ_i (-1)^i C(k + 1, i) p_i^k / k!, over i ≤ k / 2 (Schoenberg, 1946). Takes fewer operations
    than the recursion.
    """

    def __init__(
        self,
        rows: int,
        knots: Tensor,
        steps: Tensor,
        order: int,
        activation: str | None,
        dtype: torch.dtype,
    ) -> None:
        """`steps` are `splines.even_steps` of the knots."""
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
        self.out = _room(rows, knots, order, activation, knots.dtype)

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
        place = ((x - self.origin) * self.per_step)[:, None]
        distance = torch.sub(place, self.middles, out=self.distance[:rows])
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


class LocalKernel:
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
            mine = grad.gather(1, (index.clamp(0, self.count - 1) + self.base)[:, None])[:, 0]
            inside = (index >= 0) & (index < self.count)
            grad_x += torch.where(inside, slope * mine, 0.0)
        _add_base_gradient(grad_x, x, grad, self.activation)
        return out

    def _compute(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        out = self.out[: len(x)].zero_()
        span, values, slopes = splines.local_b_splines(x, self.padded, self.order)
        places = torch.arange(self.order + 1, device=x.device)[:, None]
        index = span[:, None] + (self.before - self.order) + places
        out.scatter_(1, index, torch.stack(values, dim=1).to(self.dtype))
        if self.activation is not None:
            out[:, self.before - 1] = ACTIVATIONS[self.activation][0](x)
        return out[:, self.before - self.base : self.before + self.count], span, slopes


def _add_base_gradient(grad_x: Tensor, x: Tensor, grad: Tensor, activation: str | None) -> None:
    if activation is not None:
        grad_x += ACTIVATIONS[activation][1](grad[:, 0].to(x.dtype), x)


# ---- compiled ----


def _recursion(x: Tensor, table: Tensor, order: int) -> tuple[list[Tensor], list[Tensor]]:
    """Every B-spline at x (rows, in), and the last step's shares; their differences are slopes.

    Per function, not per tensor of functions: a compiler then keeps all of it in registers.
    """
    knots, inverse, before_last = _split(table, order)
    x = torch.where(x == knots[-1], before_last, x)
    distance = [x - knot for knot in knots.unbind()]
    reached = [x >= knot for knot in knots.unbind()]
    values = [(a & ~b).to(x.dtype) for a, b in pairwise(reached)]
    shares: list[Tensor] = []
    for degree, scale in enumerate(inverse, start=1):
        shares = [value * s for value, s in zip(values, scale.unbind(), strict=True)]
        values = [
            distance[i] * shares[i] - distance[i + degree + 1] * shares[i + 1]
            for i in range(len(shares) - 1)
        ]
    return values, shares


def write_features(
    order: int, activation: str | None, x: Tensor, table: Tensor, out: Tensor
) -> None:
    """Writes the features of x (rows, in) into `out` (rows, features, in)."""
    values, _ = _recursion(x, table, order)
    base = [] if activation is None else [ACTIVATIONS[activation][0](x)]
    out.copy_(torch.stack([*base, *values], dim=1))


def write_gradients(
    order: int,
    activation: str | None,
    x: Tensor,
    table: Tensor,
    out: Tensor,
    grad: Tensor,
    grad_x: Tensor,
) -> None:
    """The same, and from the features' gradient `grad` that in x into `grad_x`."""
    values, shares = _recursion(x, table, order)
    base = [] if activation is None else [ACTIVATIONS[activation][0](x)]
    out.copy_(torch.stack([*base, *values], dim=1))
    splines_grad = [row.to(x.dtype) for row in grad.unbind(1)[len(base) :]]
    total = torch.zeros_like(x)
    if order > 0:
        total = shares[0] * splines_grad[0] - shares[-1] * splines_grad[-1]
        for share, (before, after) in zip(shares[1:-1], pairwise(splines_grad), strict=True):
            total = total + share * (after - before)
        total = order * total
    if activation is not None:
        total = total + ACTIVATIONS[activation][1](grad[:, 0].to(x.dtype), x)
    grad_x.copy_(total)


@cache
def _compiled(
    order: int,
    activation: str | None,
    M: int,
    exact: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Callable[..., object], ...] | None:
    """The two functions above for these settings; None, with a warning, if that fails."""
    rows, width = 512, 192  # typical
    x = torch.zeros(rows, width, dtype=exact, device=device)
    table = knot_table(torch.arange(M).to(x).repeat(width, 1), order)
    count = M - order - 1 + int(activation is not None)
    out = torch.zeros(rows, count, width, dtype=dtype, device=device)
    first = [x, table, out]
    second = [*first, out.clone(), x.clone()]
    return kan_compile.all_compiled(
        kan_compile.Kernel(write_features, (order, activation), first),
        kan_compile.Kernel(write_gradients, (order, activation), second),
    )


class CompiledKernel:
    """The recursion in one pass over x, by compiled functions."""

    def __init__(
        self,
        functions: tuple[Callable[..., object], ...],
        rows: int,
        knots: Tensor,
        order: int,
        activation: str | None,
        dtype: torch.dtype,
    ) -> None:
        self.write_features, self.write_gradients = functions
        self.table = knot_table(knots, order)
        self.out = _room(rows, knots, order, activation, dtype)

    def features(self, x: Tensor) -> Tensor:
        out = self.out[: len(x)]
        self.write_features(x, self.table, out)
        return out

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
        out = self.out[: len(x)]
        self.write_gradients(x, self.table, out, grad, grad_x)
        return out


def make_kernel(
    rows: int,
    knots: Tensor,
    order: int,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
) -> Kernel:
    """The kernel for blocks of up to `rows` contiguous rows.

    Args:
        knots: (in, M), in the dtype in which x comes and the features are computed.
        activation: a name in ACTIVATIONS, or None for features without b(x).
        dtype: of the features that it gives, and of their gradient.
        compiled: whether to compile where that is possible and the grid is not large.
    """
    M, settings = knots.shape[1], (rows, knots, order, activation, dtype)
    if M > DENSE_KNOTS:
        return LocalKernel(*settings)
    if compiled and knots.device.type != "cpu":
        functions = _compiled(order, activation, M, knots.dtype, dtype, knots.device)
        if functions is not None:
            return CompiledKernel(functions, *settings)
    if knots.device.type == "cpu" and order <= POLYNOMIAL_ORDER:
        _, steps = splines.remembered(native.places, knots, order)
        if steps is not None:
            return EvenKernel(rows, knots, steps, order, activation, dtype)
    return EagerKernel(*settings)
