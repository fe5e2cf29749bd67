"""The Levenberg-Marquardt method for a batch of small problems.

Not `scipy.optimize.least_squares`, which solves one problem per call: candidates are fitted to all
curves of a network at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# theta (B, P) -> loss (B,)
Loss = Callable[[Tensor], Tensor]
# theta (B, P) -> gradient (B, P) and curvature (B, P, P), both of the loss
Quadratic = Callable[[Tensor], tuple[Tensor, Tensor]]

DAMPING = 1e-3
MIN_DAMPING, MAX_DAMPING = 1e-14, 1e12


def levenberg_marquardt(
    loss: Loss,
    quadratic: Quadratic,
    theta: Tensor,
    steps: int,
    after: Callable[[int, Tensor, Tensor], bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimizes losses by damped Newton steps (Marquardt, 1963). No loss ever increases.

    Args:
        loss: a step to a loss that is not finite is rejected.
        quadratic: gradient and a positive semidefinite curvature, such as that of Gauss-Newton.
        theta: (B, P) initial parameters, for B problems of P parameters each.
        steps: maximum number of steps.
        after: called after each step with the number of steps done, theta and the losses; return
            True to stop.

    Returns:
        theta (B, P) and the losses (B,).
    """
    current = loss(theta)
    damping = torch.full_like(current, DAMPING)
    gradient, curvature = quadratic(theta)
    stuck = torch.zeros_like(current, dtype=torch.bool)
    for step in range(1, steps + 1):
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        floor = 1e-12 * diagonal.amax(dim=-1, keepdim=True) + 1e-300
        damped = curvature + torch.diag_embed(damping[:, None] * torch.maximum(diagonal, floor))
        factor, failed = torch.linalg.cholesky_ex(damped)
        move = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        trial = theta - move.nan_to_num(0.0, 0.0, 0.0)
        new = loss(trial)
        better = (new < current) & (failed == 0) & ~stuck
        negligible = current - new <= 1e-15 * current
        damping = torch.where(better, damping / 5, damping * 4).clamp_min(MIN_DAMPING)
        stuck |= (damping > MAX_DAMPING) | ~current.isfinite() | (better & negligible)
        if better.any():
            theta = torch.where(better[:, None], trial, theta)
            current = torch.where(better, new, current)
            gradient, curvature = quadratic(theta)
        if (after is not None and after(step, theta, current)) or stuck.all():
            break
    return theta, current
