"""One pass through a network that keeps what fitting and attribution need."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.curve_fitting.function_library import value_and_slopes
from kansformer.symbolic.dataset import Dataset
from kansformer.symbolic.symbolic_layer import SymbolicKAN, SymbolicLayer

REFERENCE_SAMPLES = 1000


@dataclass
class LayerTrace:
    """What went through a layer.

    Attributes:
        layer: it.
        x: (N, in) what came in.
        features: (N, in, n + 1), or None where no edge is a spline.
        sums: (N, out), before products.
    """

    layer: SymbolicLayer
    x: Tensor
    features: Tensor | None
    sums: Tensor

    def deviations(self) -> Tensor:
        """Standard deviation of every edge's output, (out, in), differentiable, 0 for cut ones.

        A spline edge's from the covariance of its features, so no tensor of (N, out, in) is needed.
        """
        layer = self.layer
        total = self.sums.new_zeros(layer.mask.shape)
        if self.features is not None:
            centred = (self.features - self.features.mean(dim=0)).transpose(0, 1)  # (in, N, n + 1)
            covariance = centred.mT @ centred / max(len(self.x) - 1, 1)
            weight = layer.weight()
            variance = torch.einsum("oim,imn,oin->oi", weight, covariance, weight)
            deviation = variance.clamp_min(1e-24).sqrt()  # a root of zero has no derivative
            total = torch.where(layer.numeric(), deviation, total)
        for name, (o, i) in layer.formulas().items():
            values = layer.apply_function(name, self.x, o, i)
            variance = (values - values.mean(dim=0)).square().sum(dim=0) / max(len(values) - 1, 1)
            total = total.index_put((o, i), variance.clamp_min(1e-24).sqrt())
        return total


def trace(
    model: SymbolicKAN, x: Tensor, first_features: Tensor | None = None
) -> tuple[Tensor, list[LayerTrace]]:
    """Runs the layers one by one.

    Args:
        x: (N, inputs), all of them.
        first_features: of the first layer, if they are known from a former pass with the same x.

    Returns:
        (N, outputs), and what went through each layer.
    """
    x = model.select(x)
    layers: list[LayerTrace] = []
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
        if torch.is_grad_enabled() and not sums.requires_grad:  # every edge is cut
            sums = sums.detach().clone().requires_grad_()
        layers.append(LayerTrace(layer, x, values, sums))
        x = layer.multiply(sums)
    return x, layers


class ActiveParameters:
    """The parameters that act, as one vector: those of edges that are not cut."""

    def __init__(self, model: SymbolicKAN) -> None:
        self.layers = list(model.layers)
        self.places = [
            (layer.numeric().nonzero(as_tuple=True), layer.symbolic().nonzero(as_tuple=True))
            for layer in self.layers
        ]

    def count(self) -> int:
        """P, how many numbers these are."""
        return len(self.read())

    def read(self) -> Tensor:
        """(P,): layer by layer the weights of splines, then those of formulas."""
        parts = []
        for layer, (numeric, symbolic) in zip(self.layers, self.places, strict=True):
            parts += [layer.weight()[numeric].flatten(), layer.affine[symbolic].flatten()]
        return torch.cat(parts).detach()

    def write(self, theta: Tensor) -> None:
        """Puts a vector (P,) in place."""
        with torch.no_grad():
            start = 0
            for layer, (numeric, symbolic) in zip(self.layers, self.places, strict=True):
                weight = layer.weight()
                stop = start + len(numeric[0]) * weight.shape[-1]
                weight[numeric] = theta[start:stop].view(-1, weight.shape[-1])
                layer.set_weight(weight)
                start, stop = stop, stop + 4 * len(symbolic[0])
                layer.affine[symbolic] = theta[start:stop].view(-1, 4)
                start = stop

    def gradient(self, loss: Tensor) -> Tensor:
        """(P,) of a scalar that depends on them."""
        tensors = [t for la in self.layers for t in (la.kan.base_weight, la.kan.spline_weight,
                                                     la.affine)]  # fmt: skip
        grads = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
        parts = []
        for k, (numeric, symbolic) in enumerate(self.places):
            base, spline, affine = grads[3 * k : 3 * k + 3]
            weight = torch.cat([base[..., None], spline], dim=-1)
            parts += [weight[numeric].flatten(), affine[symbolic].flatten()]
        return torch.cat(parts)

    def jacobian(self, y: Tensor, layers: list[LayerTrace]) -> Tensor:
        """Derivatives of the outputs (N, outputs) in the parameters, (N, outputs, P).

        An edge's parameters act through its output alone: its slope in each, times the slope of the
        network's output in the sum that the edge adds to.
        """
        sums = [part.sums for part in layers]
        back = [
            torch.autograd.grad(
                y[:, k].sum(), sums, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for k in range(y.shape[1])
        ]
        parts = []
        for number, (part, (numeric, _)) in enumerate(zip(layers, self.places, strict=True)):
            sensitivity = torch.stack([grads[number] for grads in back], dim=1)  # (N, outputs, out)
            o, i = numeric
            if part.features is not None:
                own = part.features.detach()[:, None, i]  # (N, 1, edges, n + 1)
                parts.append((sensitivity[:, :, o, None] * own).flatten(2))
            o, i = self.places[number][1]
            if len(o):
                slopes = self._slopes(part, o, i)
                parts.append((sensitivity[:, :, o, None] * slopes[:, None]).flatten(2))
        return torch.cat(parts, dim=2)

    def _slopes(self, part: LayerTrace, targets: Tensor, sources: Tensor) -> Tensor:
        """Slopes of formulas in a, b, c and d, (N, edges, 4)."""
        columns = []
        for o, i in zip(targets.tolist(), sources.tolist(), strict=True):
            name = part.layer.names[o][i]
            assert name is not None
            columns.append(value_and_slopes(name, part.x[:, i], part.layer.affine[o, i])[1])
        return torch.stack(columns, dim=1)


def training_samples(model: SymbolicKAN, data: Dataset | Tensor | None) -> Tensor:
    """The samples (N, inputs) that a surgeon may look at: a dataset's training inputs only.

    Without data, places spread evenly over the grids of the first layer, the same every time.
    """
    if isinstance(data, Tensor):
        x = data.reshape(-1, data.shape[-1])
    elif data is not None:
        x = data["train_input"]
    else:
        first = model.layers[0]
        k, grid = first.kan.spline_order, first.kan.grid
        sobol = torch.quasirandom.SobolEngine(len(grid))
        places = sobol.draw(REFERENCE_SAMPLES, dtype=grid.dtype)
        low, high = grid[:, k], grid[:, grid.shape[1] - k - 1]
        x = grid.new_zeros(REFERENCE_SAMPLES, len(model.names))
        x[:, model.inputs] = low + (high - low) * places.to(grid)
    if len(x) == 0 or not x.isfinite().all():
        raise ValueError("samples are needed, and finite ones")
    return x.detach().to(model.inputs.device)
