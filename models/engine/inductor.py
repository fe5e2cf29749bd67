"""Kernels for accelerators, which torch.compile makes and keeps in a cache.

They compute the same as those of `eager.py`, in one pass over x. No one has run them on an
accelerator yet; tests run the functions as they are.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .definition import ACTIVATIONS
from .eager import feature_buffer, knot_table, split_knot_table
from .fallback import warn_of_fallback
from .memory import workspace

# At the default thresholds the intermediate values of a long formula are written to memory and
# read again.
OPTIONS: dict[str, Any] = {"realize_opcount_threshold": 10**5, "realize_reads_threshold": 10**5}


class _Program(NamedTuple):
    """A function of constants and tensors, which writes its results into some of the tensors."""

    function: Callable[..., None]
    constants: tuple[object, ...]
    examples: list[Tensor]  # of typical sizes


def _all_compiled(*programs: _Program) -> tuple[Callable[..., object], ...] | None:
    """Programs as functions of the tensors alone, tried on their examples.

    Returns:
        None, with a warning, if that fails.
    """
    try:
        functions = tuple(_compiled(program) for program in programs)
        for function, program in zip(functions, programs, strict=True):
            function(*program.examples)  # torch.compile does its work, and fails, at the first call
        return functions
    except Exception as error:  # compilers fail in all sorts of ways
        warn_of_fallback(error)
        return None


def _compiled(program: _Program) -> Callable[..., object]:
    function, constants, _ = program

    def run(*tensors: Tensor) -> None:
        function(*constants, *(tensor.detach() for tensor in tensors))

    # torch.compile counts what it compiles by code object, and gives up after a few
    copied = FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
    return torch.compile(copied, dynamic=True, fullgraph=True, options=OPTIONS)


# ---- KAN layers ----


def _recursion(x: Tensor, table: Tensor, order: int) -> tuple[list[Tensor], list[Tensor]]:
    """Every B-spline at x (rows, in), and the last step's shares; their differences are slopes.

    Per function, not per tensor of functions: a compiler then keeps all of it in registers.
    """
    knots, inverse, before_last = split_knot_table(table, order)
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


def write_feature_gradients(
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
def _feature_programs(
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
    return _all_compiled(
        _Program(write_features, (order, activation), first),
        _Program(write_feature_gradients, (order, activation), second),
    )


class CompiledFeatures:
    """The Cox–de Boor recursion in one pass over x."""

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
        self.out = feature_buffer(rows, knots, order, activation, dtype)

    def features(self, x: Tensor) -> Tensor:
        out = self.out[: len(x)]
        self.write_features(x, self.table, out)
        return out

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
        out = self.out[: len(x)]
        self.write_gradients(x, self.table, out, grad, grad_x)
        return out


def feature_kernel(
    rows: int, knots: Tensor, order: int, activation: str | None, dtype: torch.dtype
) -> CompiledFeatures | None:
    """The kernel for blocks of up to `rows` rows; None, with a warning, if it cannot be compiled.

    Args:
        knots: (in, M), in the dtype in which features are computed.
        activation: a name in ACTIVATIONS, or None for features without b(x).
        dtype: of the features that it gives, and of their gradient.
    """
    functions = _feature_programs(
        order, activation, knots.shape[1], knots.dtype, dtype, knots.device
    )
    if functions is None:
        return None
    return CompiledFeatures(functions, rows, knots, order, activation, dtype)


# ---- group-KAN layers ----


def _polynomials(x: Tensor, x_inside: Tensor, table: Tensor) -> tuple[list[Tensor], Tensor]:
    """Coefficients of the polynomial at each x, and the distance from its interval's start.

    All intervals in turn, each overwriting the last where x has reached it: this vectorizes, and
    the compiler keeps it in registers.

    Shapes: x and x_inside (rows, groups, channels), table (M, order + 2, groups, 1).
    """
    start, coefficients = table[0, 0], [torch.zeros_like(x)] * (table.shape[1] - 1)
    last = table[-1, 0]
    for row in table[:-1].unbind():
        knot, *here = row.unbind()
        reached = x >= knot
        start = torch.where(reached, knot, start)
        coefficients = [torch.where(reached, a, b) for a, b in zip(here, coefficients, strict=True)]
    coefficients = [torch.where(x > last, 0.0, c) for c in coefficients]
    return coefficients, x_inside - start


def write_group_values(activation: str | None, x: Tensor, table: Tensor, out: Tensor) -> None:
    """Writes φ(x), all (rows, groups, channels), into `out`."""
    x_inside = torch.minimum(torch.maximum(x, table[0, 0]), table[-1, 0])  # infinities give no NaN
    coefficients, distance = _polynomials(x, x_inside, table)
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * distance + coefficient
    out.copy_(value if activation is None else ACTIVATIONS[activation][0](x) + value)


def write_group_gradients(
    activation: str | None, x: Tensor, table: Tensor, out: Tensor, grad: Tensor, grad_x: Tensor
) -> None:
    """The same, and from the gradient `grad` in φ that in x into `grad_x`."""
    x_inside = torch.minimum(torch.maximum(x, table[0, 0]), table[-1, 0])
    coefficients, distance = _polynomials(x, x_inside, table)
    value, slope = torch.zeros_like(x), torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        slope = slope * distance + value
        value = value * distance + coefficient
    grad = grad.to(x.dtype)
    base_slope = 0.0 if activation is None else ACTIVATIONS[activation][1](grad, x)
    out.copy_(value if activation is None else ACTIVATIONS[activation][0](x) + value)
    grad_x.copy_(base_slope + slope * grad)


def write_group_moments(
    order: int, x: Tensor, table: Tensor, grad: Tensor, moments: Tensor
) -> None:
    """The gradient in the pieces by channel, ((M - 1)·(order + 1), groups, channels).

    Apart from `write_group_gradients`, since a compiler makes slower code of both together.
    """
    x_inside = torch.minimum(torch.maximum(x, table[0, 0]), table[-1, 0])
    knots = table[:, 0].unbind()
    reached = [*(x >= knot for knot in knots[:-1]), x > knots[-1]]
    sums = []
    for knot, (above, beyond) in zip(knots, pairwise(reached), strict=False):
        weighted = torch.where(above & ~beyond, grad.to(x.dtype), 0.0)
        for _ in range(order + 1):
            sums.append(weighted.sum(dim=0))
            weighted = weighted * (x_inside - knot)
    moments.copy_(torch.stack(sums))


@cache
def _group_programs(
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
    return _all_compiled(
        _Program(write_group_values, (activation,), first),
        _Program(write_group_gradients, (activation,), second),
        _Program(write_group_moments, (order,), third),
    )


class CompiledGroupFunctions:
    """Tries the intervals in turn."""

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
        groups, intervals, powers = self.pieces.shape
        moments = x.new_empty((intervals - 2) * powers, groups, x.shape[1] // groups)
        grouped, grouped_grad = self._grouped(x), self._grouped(grad)
        self.write_gradients(
            grouped, self.table, self._grouped(out), grouped_grad, self._grouped(grad_x)
        )
        self.write_moments(grouped, self.table, grouped_grad, moments)
        inner = moments.sum(dim=2).T.reshape(groups, intervals - 2, powers)
        return out, F.pad(inner, (0, 0, 1, 1))

    def _grouped(self, x: Tensor) -> Tensor:
        return x.view(len(x), len(self.pieces), -1)


def group_kernel(
    knots: Tensor, pieces: Tensor, activation: str | None, dtype: torch.dtype
) -> CompiledGroupFunctions | None:
    """The kernel of a group-KAN layer; None, with a warning, if it cannot be compiled.

    Args:
        knots: (groups, M), in the dtype in which x comes and φ is computed.
        pieces: (groups, M + 1, order + 1), see `definition.group_functions`, in the same dtype.
        activation: a name in ACTIVATIONS, or None for functions without b(x).
        dtype: of the values that it gives, and of their gradient.
    """
    M, order = knots.shape[1], pieces.shape[2] - 1
    functions = _group_programs(order, activation, M, knots.dtype, dtype, knots.device)
    if functions is None:
        return None
    return CompiledGroupFunctions(functions, knots, pieces, activation, dtype)
