"""A forward pass that keeps the activations of every layer, for fitting and for scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.symbolic.symbolic_kan import SymbolicKAN
from kansformer.symbolic.symbolic_layer import SymbolicLayer


@dataclass
class LayerActivations:
    """The activations of a layer for N samples.

    Attributes:
        layer: the layer.
        x: (N, in) its inputs.
        features: (N, in, n + 1), or None if no edge computes a spline.
        sums: (N, out), before products.
    """

    layer: SymbolicLayer
    x: Tensor
    features: Tensor | None
    sums: Tensor

    def deviations(self) -> Tensor:
        """Standard deviation of each edge's output, (out, in); differentiable, 0 if removed.

        For splines it follows from the covariance of the features, which avoids a tensor of shape
        (N, out, in).
        """
        layer = self.layer
        total = self.sums.new_zeros(layer.mask.shape)
        if self.features is not None:
            centerd = (self.features - self.features.mean(dim=0)).transpose(0, 1)  # (in, N, n + 1)
            covariance = centerd.mT @ centerd / max(len(self.x) - 1, 1)
            weight = layer.weight()
            variance = torch.einsum("oim,imn,oin->oi", weight, covariance, weight)
            deviation = variance.clamp_min(1e-24).sqrt()  # the square root has no derivative at 0
            total = torch.where(layer.numeric(), deviation, total)
        for name, (o, i) in layer.formulas().items():
            values = layer.apply_function(name, self.x, o, i)
            variance = (values - values.mean(dim=0)).square().sum(dim=0) / max(len(values) - 1, 1)
            total = total.index_put((o, i), variance.clamp_min(1e-24).sqrt())
        return total


def run_layers(
    model: SymbolicKAN, x: Tensor, first_features: Tensor | None = None
) -> tuple[Tensor, list[LayerActivations]]:
    """Runs the layers one by one.

    Args:
        x: (N, inputs), including unused inputs.
        first_features: features of the first layer, if known from an earlier pass with the same x.

    Returns:
        The outputs (N, outputs), and the activations of each layer.
    """
    x = model.select(x)
    layers: list[LayerActivations] = []
    for layer in model.layers:
        sums = layer.bias.expand(len(x), -1)
        numeric = layer.numeric()
        values = first_features if not layers else None
        if not numeric.any():
            values = None
        else:
            values = layer.features(x) if values is None else values
            weight = layer.weight() * numeric[..., None]
            sums = sums + values.flatten(1) @ weight.flatten(1).T
        sums = layer.add_formulas(sums, x)
        if torch.is_grad_enabled() and not sums.requires_grad:  # all edges are removed
            sums = sums.detach().clone().requires_grad_()
        layers.append(LayerActivations(layer, x, values, sums))
        x = layer.multiply(sums)
    return x, layers
