"""The loss that `fit` minimizes: mean squared error plus the regularizer of the KAN paper."""

import torch
from torch import Tensor

from kansformer.symbolic.activations import LayerActivations, run_layers
from kansformer.symbolic.active_parameters import ActiveParameters
from kansformer.symbolic.symbolic_kan import SymbolicKAN


class Objective:
    """Mean squared error of a network on samples, plus `lamb` times a regularizer.

    The regularizer is that of Liu et al. (2024, KAN), equations 2.17 to 2.20, where the size of an
    edge is the standard deviation of its output over that of its input, as in pykan 0.2.8.

    Args:
        x, y: (N, inputs) and (N, outputs), in the network's dtype.
        lamb: factor of the regularizer.
        lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff: factors of its terms, see `fit`.
    """

    def __init__(
        self,
        model: SymbolicKAN,
        x: Tensor,
        y: Tensor,
        lamb: float = 0.0,
        lamb_l1: float = 1.0,
        lamb_entropy: float = 2.0,
        lamb_coef: float = 0.0,
        lamb_coefdiff: float = 0.0,
    ) -> None:
        self.model = model
        self.x, self.y = x, y
        self.lamb = lamb
        self.factors = lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff
        self.first_features: Tensor | None = None

    def run(self) -> tuple[Tensor, list[LayerActivations]]:
        """Outputs (N, outputs) and activations; the first layer's features are cached."""
        y, layers = run_layers(self.model, self.x, self.first_features)
        self.first_features = layers[0].features
        return y, layers

    def regularizer(self, sizes: list[Tensor]) -> Tensor:
        """The regularizer without the factor `lamb`, a scalar, from the layers' edge sizes."""
        l1, entropy, coef, coefdiff = self.factors
        total = self.x.new_zeros(())
        for layer, size in zip(self.model.layers, sizes, strict=True):
            total = total + l1 * size.sum() + entropy * (_entropy(size, 0) + _entropy(size, 1))
            if coef or coefdiff:
                weight = layer.kan.spline_weight[layer.numeric()]
                if len(weight):
                    total = total + coef * weight.abs().mean(dim=1).sum()
                    total = total + coefdiff * weight.diff(dim=1).abs().mean(dim=1).sum()
        return total

    def loss(self) -> tuple[Tensor, Tensor]:
        """The total loss and the regularizer without its factor, two scalars."""
        y, layers = self.run()
        error = (y - self.y).square().mean()
        if not self.lamb:
            return error, torch.zeros_like(error)
        penalty = self.regularizer([edge_sizes(part) for part in layers])
        return error + self.lamb * penalty, penalty

    def quadratic(self, active: ActiveParameters) -> tuple[Tensor, Tensor]:
        """Gradient (P,) of the loss, and the Gauss-Newton approximation of its Hessian (P, P).

        The regularizer is replaced by a parabola that bounds it from above and touches it at the
        current parameters. For a term w·s, where s is the size of an edge and s0 its current value,
        the bound is w·s ≤ w·(s² + s0²) / (2·s0).
        """
        y, layers = self.run()
        jacobian = active.jacobian(y, layers).flatten(0, 1)  # (N · outputs, P)
        residual = (y.detach() - self.y).flatten()
        gradient = 2 * (residual @ jacobian) / len(residual)
        curvature = 2 * (jacobian.T @ jacobian) / len(residual)
        if self.lamb:
            sizes = [edge_sizes(part) for part in layers]
            penalty = self.lamb * self.regularizer(sizes)
            rates = torch.autograd.grad(penalty, sizes, retain_graph=True)
            gradient = gradient + active.gradient(penalty)
            self._add_curvature(curvature, active, layers, sizes, rates)
        return gradient, curvature

    def _add_curvature(
        self,
        curvature: Tensor,
        active: ActiveParameters,
        layers: list[LayerActivations],
        sizes: list[Tensor],
        rates: tuple[Tensor, ...],
    ) -> None:
        """Adds the regularizer's curvature for splines, in place; `rates` is w for each edge."""
        start = 0
        for part, (numeric, symbolic), size, rate in zip(
            layers, active.edges, sizes, rates, strict=True
        ):
            if part.features is not None:
                values = part.features.detach()
                scale = _spread(part.x.detach()) + 0.1
                centerd = ((values - values.mean(dim=0)) / scale[:, None]).transpose(0, 1)
                covariance = centerd.mT @ centerd / max(len(values) - 1, 1)  # (in, n + 1, n + 1)
                width = covariance.shape[-1]
                factor = (rate.clamp_min(0) / size.clamp_min(1e-8)).detach()
                for o, i in zip(*(t.tolist() for t in numeric), strict=True):
                    block = slice(start, start + width)
                    curvature[block, block] += factor[o, i] * covariance[i]
                    start += width
            start += 4 * len(symbolic[0])


def edge_sizes(part: LayerActivations) -> Tensor:
    """Standard deviation of each edge's output over that of its input, (out, in)."""
    return part.deviations() / (_spread(part.x) + 0.1)


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each column, (N, in) -> (in,); 0 for a single sample."""
    return x.std(dim=0) if len(x) > 1 else torch.zeros_like(x[0])


def _entropy(size: Tensor, dim: int) -> Tensor:
    """Mean entropy of the relative sizes along a dimension, a scalar."""
    share = size / (size.sum(dim=dim, keepdim=True) + 1)
    return -(share * (share + 1e-4).log2()).sum(dim=dim).mean()
