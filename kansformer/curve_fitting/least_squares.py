"""Levenberg and Marquardt's method, for many small problems at once."""

from collections.abc import Callable

import torch
from torch import Tensor

# theta (B, P) -> loss (B,)
Loss = Callable[[Tensor], Tensor]
# theta (B, P) -> gradient (B, P) and curvature (B, P, P), both of the loss
Model = Callable[[Tensor], tuple[Tensor, Tensor]]

DAMPING = 1e-3
LEAST_DAMPING, MOST_DAMPING = 1e-14, 1e12


def levenberg_marquardt(
    loss: Loss,
    model: Model,
    theta: Tensor,
    steps: int,
    after: Callable[[int, Tensor, Tensor], bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimises losses by damped Newton steps (Marquardt, 1963); no loss ever grows.

    Args:
        loss: a loss that is not finite counts as too large.
        model: gradient, and a curvature that is positive semidefinite, such as Gauss and Newton's.
        theta: (B, P) where to start, B problems of P parameters.
        steps: most steps.
        after: called with the number of steps done, theta and the losses; stops when true.

    Returns:
        theta (B, P) and the losses (B,).
    """
    current = loss(theta)
    damping = torch.full_like(current, DAMPING)
    gradient, curvature = model(theta)
    stuck = torch.zeros_like(current, dtype=torch.bool)
    for step in range(1, steps + 1):
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        least = 1e-12 * diagonal.amax(dim=-1, keepdim=True) + 1e-300
        damped = curvature + torch.diag_embed(damping[:, None] * torch.maximum(diagonal, least))
        factor, failed = torch.linalg.cholesky_ex(damped)
        move = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        trial = theta - move.nan_to_num(0.0, 0.0, 0.0)
        found = loss(trial)
        better = (found < current) & (failed == 0) & ~stuck
        negligible = current - found <= 1e-15 * current
        damping = torch.where(better, damping / 5, damping * 4).clamp_min(LEAST_DAMPING)
        stuck |= (damping > MOST_DAMPING) | ~current.isfinite() | (better & negligible)
        if better.any():
            theta = torch.where(better[:, None], trial, theta)
            current = torch.where(better, found, current)
            gradient, curvature = model(theta)
        if (after is not None and after(step, theta, current)) or stuck.all():
            break
    return theta, current
