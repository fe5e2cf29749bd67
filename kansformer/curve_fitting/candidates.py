"""Candidate formulas for curves: every function of a library, fitted to every curve at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.curve_fitting.function_library import FUNCTIONS, function_named, value_and_slopes
from kansformer.curve_fitting.least_squares import levenberg_marquardt

FIT_SAMPLES = 200  # quantiles of a curve's inputs at which candidates are fitted
STARTS = 3  # best points of the grid search that are optimized further
STEPS = 60  # of the Levenberg-Marquardt method


@dataclass(frozen=True)
class Suggestion:
    """A formula for a curve: a·f(b·x + c) + d with (a, b, c, d) = affine.

    `r2` is the fraction of the curve's variance that the formula explains; `loss` is 1 - r2,
    computed without cancellation.
    """

    name: str
    affine: tuple[float, float, float, float]
    r2: float
    loss: float
    complexity: int

    @property
    def cost(self) -> float:
        """What candidates are ranked by: one unit of complexity must reduce the loss tenfold."""
        return self.complexity + math.log10(self.loss + 1e-8)


@torch.no_grad()
def fit_candidates(x: Tensor, y: Tensor, library: Sequence[str]) -> list[list[Suggestion]]:
    """Fits every function to every curve: a grid search over (b, c), then Levenberg-Marquardt.

    Args:
        x, y: (curves, N) inputs and outputs.
        library: names in FUNCTIONS.

    Returns:
        For each curve the functions that fit, in order of increasing loss; an empty list for a
        constant curve.

    Raises:
        ValueError: an unknown function.
    """
    middle = (x.amax(dim=1) + x.amin(dim=1)) / 2
    half = (x.amax(dim=1) - x.amin(dim=1)) / 2
    mean, spread = y.mean(dim=1), y.std(dim=1, correction=0)
    flat = (half < 1e-12) | (spread < 1e-12)
    half, spread = half.masked_fill(half < 1e-12, 1.0), spread.masked_fill(spread < 1e-12, 1.0)
    ranks = torch.linspace(0, x.shape[1] - 1, min(FIT_SAMPLES, x.shape[1])).round().long()
    order = x.argsort(dim=1)[:, ranks]
    u = (x.gather(1, order) - middle[:, None]) / half[:, None]
    v = (y.gather(1, order) - mean[:, None]) / spread[:, None]
    every_u = (x - middle[:, None]) / half[:, None]

    result: list[list[Suggestion]] = [[] for _ in x]
    for name in library:
        theta, losses = _fit_function(name, u, v, every_u)
        a, b, c, d = theta.unbind(dim=-1)
        scaled = torch.stack(
            [a * spread, b / half, c - b * middle / half, d * spread + mean], dim=-1
        )
        for k, suggestions in enumerate(result):
            loss = float(losses[k])
            if math.isfinite(loss) and not flat[k]:
                a, b, c, d = scaled[k].tolist()
                suggestions.append(
                    Suggestion(name, (a, b, c, d), 1 - loss, loss, FUNCTIONS[name].complexity)
                )
    for suggestions in result:
        suggestions.sort(key=lambda s: s.loss)
    return result


def _fit_function(name: str, u: Tensor, v: Tensor, every_u: Tensor) -> tuple[Tensor, Tensor]:
    """Fits one function to curves that are scaled to [-1, 1] and unit variance.

    Args:
        u, v: (curves, N) inputs and outputs to fit.
        every_u: (curves, M) inputs at which the function must lie in its domain.

    Returns:
        (a, b, c, d) (curves, 4), and 1 - R² (curves,), infinite where the function is not defined
        on all inputs.
    """
    function = function_named(name)
    b, c = _search_grid(function.search, u)
    z = b[:, None] * u[:, None] + c[:, None]  # (curves, grid, N)
    value = function.evaluate(z)
    a, d, loss = _fit_line(value, v[:, None])
    loss = loss.masked_fill(~function.covers(z).all(dim=-1), torch.inf)
    starts = loss.topk(min(STARTS, len(b)), dim=1, largest=False).indices  # (curves, starts)
    theta = torch.stack([a, b.expand_as(a), c.expand_as(a), d], dim=-1)
    theta = theta.gather(1, starts[..., None].expand(-1, -1, 4))
    curves, count = starts.shape
    theta = theta.flatten(0, 1)
    x, y = u.repeat_interleave(count, dim=0), v.repeat_interleave(count, dim=0)

    def losses(theta: Tensor) -> Tensor:
        a, b, c, d = (p[:, None] for p in theta.unbind(-1))
        z = b * x + c
        loss = (a * function.evaluate(z) + d - y).square().mean(dim=1)
        return loss.masked_fill(~function.covers(z).all(dim=1), torch.inf)

    def quadratic(theta: Tensor) -> tuple[Tensor, Tensor]:
        value, slopes = value_and_slopes(name, x, theta)
        gradient = torch.einsum("kn,knp->kp", value - y, slopes)
        return 2 * gradient / x.shape[1], 2 * slopes.mT @ slopes / x.shape[1]

    theta, loss = levenberg_marquardt(losses, quadratic, theta, STEPS)
    z = theta[:, 1:2] * every_u.repeat_interleave(count, dim=0) + theta[:, 2:3]
    loss = loss.masked_fill(~function.covers(z).all(dim=1), torch.inf).view(curves, count)
    best = loss.argmin(dim=1)
    rows = torch.arange(curves, device=u.device)
    return theta.view(curves, count, 4)[rows, best], loss[rows, best]


def _search_grid(kind: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """Values of b and c (grid,) to search over, for inputs in [-1, 1]; see `Function.search`."""

    def both_signs(x: Tensor) -> Tensor:
        return torch.cat([x, -x])

    def pairs(b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        grid = torch.cartesian_prod(b, c).to(like)
        return grid[:, 0], grid[:, 1]

    one, zero = torch.ones(1), torch.zeros(1)
    if kind == "shift":
        near, far = torch.linspace(0, 1, 21), torch.logspace(0.01, 1.5, 25)
        return pairs(both_signs(one), both_signs(torch.cat([near, 1 + 1e-3 * one, far])))
    if kind == "rate":
        return pairs(both_signs(torch.logspace(-1, 1.3, 30)), zero)
    if kind == "phase":
        return pairs(torch.logspace(-1, 1.6, 50), torch.arange(8) * (math.pi / 8))
    if kind == "both":
        b, c = pairs(torch.logspace(-0.7, 1.3, 16), both_signs(torch.linspace(0, 2, 17)))
        return b, b * c
    return pairs(one, zero)


def _fit_line(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares (a, d) of a·f + d ≈ y over the last dimension, and the mean squared error."""
    centerd = f - f.mean(dim=-1, keepdim=True)
    other = y - y.mean(dim=-1, keepdim=True)
    variance = centerd.square().mean(dim=-1)
    a = (centerd * other).mean(dim=-1) / variance.clamp_min(1e-300)
    a = torch.where(variance > 1e-20, a, 0)
    loss = (other - a[..., None] * centerd).square().mean(dim=-1)
    return a, y.mean(dim=-1) - a * f.mean(dim=-1), loss.nan_to_num(torch.inf)
