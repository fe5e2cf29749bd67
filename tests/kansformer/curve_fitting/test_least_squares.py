"""Levenberg-Marquardt reaches the minimum, and no loss increases on the way."""

import torch
from torch import Tensor

from kansformer.curve_fitting.least_squares import levenberg_marquardt


def rosenbrock(theta: Tensor) -> Tensor:
    """Residuals, (B, 2) -> (B, 2), with the minimum at (1, 1)."""
    a, b = theta.unbind(-1)
    return torch.stack([1 - a, 10 * (b - a**2)], dim=-1)


def loss(theta: Tensor) -> Tensor:
    return rosenbrock(theta).square().sum(dim=-1)


def quadratic(theta: Tensor) -> tuple[Tensor, Tensor]:
    a = theta[:, 0]
    zero = torch.zeros_like(a)
    jacobian = torch.stack([zero - 1, zero, -20 * a, zero + 10], dim=-1).view(-1, 2, 2)
    gradient = 2 * torch.einsum("bn,bnp->bp", rosenbrock(theta), jacobian)
    return gradient, 2 * jacobian.mT @ jacobian


def test_each_problem_of_a_batch_reaches_its_minimum() -> None:
    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [3.0, -2.0]], dtype=torch.float64)
    losses = [loss(start)]

    def after(step: int, theta: Tensor, current: Tensor) -> bool:
        assert step == len(losses)
        torch.testing.assert_close(loss(theta), current)
        losses.append(current)
        return False

    theta, last = levenberg_marquardt(loss, quadratic, start, 200, after)
    torch.testing.assert_close(theta, torch.ones_like(theta))
    assert (last < 1e-20).all()
    assert (torch.stack(losses).diff(dim=0) <= 0).all()


def test_it_stops_when_asked_to() -> None:
    start = torch.zeros(1, 2, dtype=torch.float64)
    steps: list[int] = []

    def after(step: int, theta: Tensor, current: Tensor) -> bool:
        steps.append(step)
        return step == 3

    levenberg_marquardt(loss, quadratic, start, 200, after)
    assert steps == [1, 2, 3]
