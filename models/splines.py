"""B-spline maths as pure functions.

A layer with `in` features has one knot vector per feature: `knots` (in, M), not decreasing, with
M = grid_size + 2·order + 1. The *grid* is the inner range knots[order] … knots[-order - 1]; the
`order` knots beyond each end let the splines taper to zero outside it. Each feature has
n = grid_size + order basis functions.

The recurrences are de Boor's; see de Boor, "A Practical Guide to Splines" (1978), chapter X, and
Piegl and Tiller, "The NURBS Book" (1997), algorithm A2.2.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

FIT_ELEMENTS = 2**24  # values of the basis that a fit holds at a time, 128 MB of them


def extend_knots(grid: Tensor, order: int, step: Tensor | float) -> Tensor:
    """Adds `order` knots beyond both ends of a grid.

    Args:
        grid: (..., grid_size + 1) increasing points.
        step: distance between the added knots, a number or (..., 1).

    Returns:
        (..., grid_size + 2·order + 1) knots.
    """
    offsets = torch.arange(1, order + 1, device=grid.device, dtype=grid.dtype) * step
    return torch.cat([grid[..., :1] - offsets.flip(-1), grid, grid[..., -1:] + offsets], dim=-1)


def uniform_knots(low: float, high: float, grid_size: int, order: int) -> Tensor:
    """Equally spaced knots whose grid is [low, high], in float64, (grid_size + 2·order + 1,)."""
    step = (high - low) / grid_size
    return low + step * torch.arange(-order, grid_size + order + 1, dtype=torch.float64)


def uniform_steps(knots: Tensor) -> Tensor | None:
    """The distance between knots (in, M) and its inverse, (2, in); None if it differs.

    Rounding differences are ignored unless they are large relative to the step, as on a fine grid
    far from zero.
    """
    exact = knots.double()
    number = torch.arange(exact.shape[1], dtype=torch.float64, device=knots.device)
    step = (exact[:, -1:] - exact[:, :1]) / (exact.shape[1] - 1)
    apart = (exact - (exact[:, :1] + step * number)).abs()
    if not bool(((apart <= 10 * torch.finfo(knots.dtype).eps * step) & (step > 0)).all()):
        return None
    return torch.cat([step, 1 / step], dim=1).T.to(knots.dtype).contiguous()


def closed_knots(knots: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
    """Knots (in, M) whose last interval is closed, and their `uniform_steps` if they may be used.

    With steps, rounding may assign a value beside a knot to the interval on its other side, which
    gives wrong values at order 0 and wrong slopes at order 1.
    """
    last = torch.nextafter(knots[:, -1:], knots.new_full((), torch.inf))
    closed = torch.where(knots < knots[:, -1:], knots, last)
    return closed, uniform_steps(knots) if order >= 2 else None


def adaptive_knots(
    x: Tensor, grid_size: int, order: int, uniform_share: float, margin: float
) -> Tensor:
    """Knots that follow the samples: quantiles, mixed with an equally spaced grid.

    Args:
        x: (N, in) samples.
        uniform_share: 1 gives an equally spaced grid over the samples' range, 0 pure quantiles.
        margin: by how much the equally spaced grid exceeds the range, in units of x.

    Returns:
        (in, grid_size + 2·order + 1) in float64. Where a feature has too few distinct samples the
        quantiles coincide and only the equally spaced share keeps its knots apart.
    """
    ordered = x.double().sort(dim=0).values
    ranks = torch.linspace(0, len(x) - 1, grid_size + 1, dtype=torch.float64, device=x.device)
    quantiles = ordered[ranks.round().long()].T  # (in, grid_size + 1)
    low, high = ordered[0, :, None] - margin, ordered[-1, :, None] + margin
    step = (high - low) / grid_size
    uniform = low + step * torch.arange(grid_size + 1, dtype=torch.float64, device=x.device)
    return extend_knots(uniform_share * uniform + (1 - uniform_share) * quantiles, order, step)


def central_knots(x: Tensor, grid_size: int, order: int, coverage: float) -> Tensor:
    """Equally spaced knots whose grid spans the central share `coverage` of the samples.

    Shapes: x (N, in) -> (in, grid_size + 2·order + 1) in float64.
    """
    ordered = x.double().sort(dim=0).values
    cut = round((1 - coverage) / 2 * (len(x) - 1))
    low, high = ordered[cut, :, None], ordered[len(x) - 1 - cut, :, None]
    step = (high - low) / grid_size
    return low + step * torch.arange(
        -order, grid_size + order + 1, dtype=torch.float64, device=x.device
    )


def finer_knots(knots: Tensor, grid_size: int, order: int) -> Tensor:
    """Knots (in, M) with the grid divided into `grid_size` intervals; those outside it stay.

    The new knots are equally spaced in units of the old intervals. If `grid_size` is a multiple of
    their number, all old knots stay, and the new splines can be any of the old.

    Shapes: (in, M) -> (in, grid_size + 2·order + 1).
    """
    M = knots.shape[1]
    grid = knots[:, order : M - order]  # (in, G + 1)
    old = grid.shape[1] - 1
    position = torch.arange(grid_size + 1, device=knots.device) * old  # in units of 1 / grid_size
    interval = (position // grid_size).clamp(max=old - 1)
    share = (position - interval * grid_size) / grid_size
    left, right = grid[:, interval], grid[:, interval + 1]
    finer = torch.where(share == 1, right, left + (right - left) * share.to(knots.dtype))
    return torch.cat([knots[:, :order], finer, knots[:, M - order :]], dim=1)


def b_spline_basis(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """Values of all B-splines of degree `order` at x.

    Intervals are half open, the last one is closed. Outside the knots every value is zero.
    Differentiable in x.

    Args:
        x: (..., in).
        knots: (in, M).

    Returns:
        (..., in, M - order - 1), in float32, or float64 if x or the knots are.
    """
    x = x.to(basis_dtype(x, knots))
    span, values, _ = local_b_splines(x, padded_knots(knots.to(x.dtype), order), order)
    index = span[..., None] + torch.arange(order + 1, device=x.device)
    basis = x.new_zeros(*x.shape, knots.shape[1] + order - 1)
    basis = basis.scatter(-1, index, torch.stack(values, dim=-1))
    return basis[..., order : knots.shape[1] - 1]


def basis_dtype(x: Tensor, knots: Tensor) -> torch.dtype:
    """float32, or float64 if x or the knots are."""
    return torch.promote_types(torch.promote_types(x.dtype, knots.dtype), torch.float32)


def padded_knots(knots: Tensor, order: int) -> Tensor:
    """Knots with `order` more at both ends, so that order + 1 functions live on every interval.

    Any will do: they move no function but those that they add. (in, M) -> (in, M + 2·order).
    """
    return extend_knots(knots, order, 1.0)


def local_b_splines(
    x: Tensor, padded: Tensor, order: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The order + 1 functions that are not zero at each x, and their slopes.

    Each step is a convex combination, so nothing cancels in float32.

    Args:
        x: (..., in), of the knots' dtype.
        padded: (in, M + 2·order), from `padded_knots`.

    Returns:
        span: (..., in) int64, number of the interval of the M knots in which x lies; the functions
            that live there have the numbers span - order … span. Those below 0 or above
            M - order - 2 belong to the padding.
        values: of these functions, order + 1 tensors (..., in); zero outside the knots.
        slopes: their derivatives, likewise.
    """
    in_features, stride = padded.shape
    knots = padded[:, order : stride - order].contiguous()
    first, last = knots[:, 0], knots[:, -1]
    inside = (x >= first) & (x <= last)
    x = torch.clamp(x, first, last)  # infinities must not reach the backward pass

    flat = x.detach().reshape(-1, in_features).T.contiguous()  # (in, N)
    span = torch.searchsorted(knots, flat, right=True) - 1
    last_span = (
        torch.searchsorted(knots, last[:, None].contiguous()) - 1
    )  # the last one that is not empty
    span = torch.minimum(span, last_span).clamp(min=0).T.reshape(x.shape)

    table = padded.T.flatten()
    at = (span + order) * in_features + torch.arange(in_features, device=x.device)
    t = {i: table.take(at + i * in_features) for i in range(1 - order, order + 1)}

    values = [inside.to(x.dtype)]
    shares: list[Tensor] = []
    for degree in range(1, order + 1):
        shares = [value / (t[r + 1] - t[r + 1 - degree]) for r, value in enumerate(values)]
        rising = [(x - t[r + 1 - degree]) * share for r, share in enumerate(shares)]
        falling = [(t[r + 1] - x) * share for r, share in enumerate(shares)]
        inner = [a + b for a, b in zip(rising[:-1], falling[1:], strict=True)]
        values = [falling[0], *inner, rising[-1]]
    if order == 0:
        return span, values, [torch.zeros_like(x)]
    slopes = [order * (a - b) for a, b in pairwise(shares)]
    return span, values, [-order * shares[0], *slopes, order * shares[-1]]


def polynomial_pieces(knots: Tensor, order: int) -> Tensor:
    """Every B-spline as a polynomial on every interval.

    Index 0 stands for x before the first knot and index M for x behind the last, where all is zero.
    On the interval from knots[s], which has index s + 1, B_j(x) is the polynomial in x - knots[s]
    with coefficients [:, s + 1, :, j], lowest power first, by the Cox–de Boor recursion on
    coefficients.

    Shapes: (in, M) -> (in, M + 1, order + 1, M - order - 1), in the knots' dtype.
    """
    start = knots[:, :-1, None, None]  # (in, intervals, 1, 1)
    t = knots[:, None, None]  # (in, 1, 1, M)
    intervals = knots.shape[1] - 1
    identity = torch.eye(intervals, dtype=knots.dtype, device=knots.device)
    pieces = identity[:, None].expand(len(knots), -1, 1, -1)
    for degree in range(1, order + 1):
        gaps = t[..., degree:] - t[..., :-degree]
        shares = pieces * torch.where(gaps > 0, 1 / gaps, 0)  # equal knots make 0 / 0 count as 0
        rising, falling = shares[..., :-1], shares[..., 1:]
        constant = (start - t[..., : -degree - 1]) * rising + (
            t[..., degree + 1 :] - start
        ) * falling
        pieces = F.pad(constant, (0, 0, 0, 1)) + F.pad(rising - falling, (0, 0, 1, 0))
    return F.pad(pieces, (0, 0, 0, 0, 1, 1))


def local_pieces(knots: Tensor, order: int) -> Tensor:
    """The polynomials of the B-splines that are not zero on each interval.

    Those of `polynomial_pieces` for the functions s - order … s on interval s; zeros for functions
    that do not exist.

    Shapes: (in, M) -> (in, M + 1, order + 1, order + 1): interval, power, function.
    """
    pieces = F.pad(polynomial_pieces(knots, order), (order + 1, order + 1))
    local = [pieces[:, i, :, i : i + order + 1] for i in range(pieces.shape[1])]
    return torch.stack(local, dim=1)


def _least_squares(a: Tensor, b: Tensor) -> Tensor:
    """Minimum-norm least squares for each feature, (in, N, n) and (in, N, m) to (in, n, m).

    In float64 on the CPU, by SVD: the only driver that is right when samples are few or a basis
    function sees none of them (CUDA has no rank-revealing one).
    """
    solution = torch.linalg.lstsq(a.double().cpu(), b.double().cpu(), driver="gelsd").solution
    return solution.to(b.device)


def fit_coefficients(x: Tensor, y: Tensor, knots: Tensor, order: int) -> Tensor:
    """Least-squares spline coefficients for samples of curves.

    Args:
        x: (N, in) sample points.
        y: (N, in, out) values of every curve at them.
        knots: (in, M).

    Returns:
        (out, in, M - order - 1) in float64; of least norm where the samples leave a choice.
    """
    a = b_spline_basis(x.double(), knots, order).transpose(0, 1)  # (in, N, n)
    return _least_squares(a, y.transpose(0, 1)).permute(2, 0, 1)


def insertion_matrix(old_knots: Tensor, new_knots: Tensor, order: int) -> Tensor:
    """The map from coefficients on old knots to those of the same function on more knots.

    The Oslo algorithm (Cohen, Lyche and Riesenfeld, 1980): the recursion of Cox and de Boor with
    another new knot as its argument at each degree. The function stays as it was everywhere, if
    the new knots contain the old ones.

    Args:
        old_knots: (in, M), increasing.
        new_knots: (in, M'), increasing.

    Returns:
        (in, n', n) in float64.
    """
    old, new = old_knots.double()[:, None], new_knots.double()[..., None]  # (in, 1, M), (in, M', 1)
    count = new_knots.shape[1] - order - 1
    first = new[:, :count]
    values = ((first >= old[..., :-1]) & (first < old[..., 1:])).double()
    for degree in range(1, order + 1):
        at = new[:, degree : degree + count]
        gaps = old[..., degree:] - old[..., :-degree]
        rising = values * (at - old[..., :-degree]) / gaps
        falling = values * (old[..., degree:] - at) / gaps
        values = rising[..., :-1] + falling[..., 1:]
    return values


def refit_matrix(
    old_knots: Tensor, new_knots: Tensor, order: int, x: Tensor | None = None
) -> Tensor:
    """The linear map from coefficients on old knots to coefficients on new ones.

    Where a feature's new knots contain its old ones, the function stays as it was (see
    `insertion_matrix`). Else the new spline is a least-squares best fit of the old one at the
    samples, and where these leave a choice the one nearest to a fit over the whole new grid, so
    that a function is not forgotten where this batch happens to have no samples. One matrix serves
    every output, and any factor on the coefficients (a scaler, a mask), since the map is linear.

    Args:
        old_knots: (in, M).
        new_knots: (in, M'), increasing.
        x: (N, in) samples; without them it is the fit over the whole new grid.

    Returns:
        (in, n', n) in float64.
    """
    nested = (old_knots[:, :, None] == new_knots[:, None]).any(dim=2).all(dim=1)  # (in,)
    nested &= (old_knots.diff(dim=1) > 0).all(dim=1)  # equal knots are not counted
    maps = insertion_matrix(old_knots, new_knots, order)
    count = max(FIT_ELEMENTS // (new_knots.shape[1] * (1 if x is None else len(x))), 1)
    for part in (~nested).nonzero()[:, 0].split(count) if not nested.all() else ():
        samples = None if x is None else x[:, part]
        maps[part] = _fit(old_knots[part], new_knots[part], order, samples)
    return maps


def _fit(old_knots: Tensor, new_knots: Tensor, order: int, x: Tensor | None) -> Tensor:
    grid = new_knots[:, order : new_knots.shape[1] - order].double()  # (in, G' + 1)
    old = torch.clamp(old_knots.double(), grid[:, :1], grid[:, -1:])
    breaks = torch.cat([old, grid], dim=-1).sort(dim=-1).values
    # order + 1 points in every polynomial piece determine a spline
    fractions = (torch.arange(order + 1, dtype=torch.float64) + 0.5) / (order + 1)
    pieces = breaks[:, :-1, None] + breaks.diff(dim=-1)[..., None] * fractions.to(breaks.device)
    everywhere = pieces.flatten(1).T  # (points, in)
    whole = _fit_map(everywhere, old_knots, new_knots, order)
    if x is None:
        return whole
    return whole + _fit_map(x.double(), old_knots, new_knots, order, start=whole)


def _fit_map(
    x: Tensor, old_knots: Tensor, new_knots: Tensor, order: int, start: Tensor | None = None
) -> Tensor:
    """Least-squares map at x from old to new coefficients, or the correction to add to `start`."""
    old = b_spline_basis(x, old_knots.double(), order).transpose(0, 1)  # (in, N, n)
    new = b_spline_basis(x, new_knots.double(), order).transpose(0, 1)  # (in, N, n')
    return _least_squares(new, old if start is None else old - new @ start)
