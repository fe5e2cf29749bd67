"""Derivatives with respect to the parameters are exact."""

import pytest
import torch

from kansformer.symbolic.activations import run_layers
from kansformer.symbolic.active_parameters import ActiveParameters
from kansformer.symbolic.objective import Objective
from tests.kansformer.symbolic.networks import box, network


def test_jacobian_and_gradient_are_those_of_finite_differences() -> None:
    model, x = network(), box(12)
    active = ActiveParameters(model)
    theta = active.read()
    y, layers = run_layers(model, x)
    jacobian = active.jacobian(y, layers)
    objective = Objective(model, x, torch.zeros_like(y), 0.1, 1.0, 2.0)
    gradient, curvature = objective.quadratic(active)
    assert (torch.linalg.eigvalsh(curvature) > -1e-9).all()
    for k in range(0, len(theta), 7):
        step = 1e-6 * torch.eye(len(theta), dtype=theta.dtype)[k]
        values, losses = [], []
        for sign in (1, -1):
            active.write(theta + sign * step)
            values.append(model(x).detach())
            losses.append(float(objective.loss()[0].detach()))
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close(jacobian[..., k], slope, rtol=1e-5, atol=1e-7)
        assert gradient[k] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-6)
