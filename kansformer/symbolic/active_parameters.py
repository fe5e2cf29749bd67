"""The trainable parameters of a network as one vector, with its Jacobian for least squares."""

import torch
from torch import Tensor

from kansformer.curve_fitting.function_library import value_and_slopes
from kansformer.symbolic.activations import LayerActivations
from kansformer.symbolic.symbolic_kan import SymbolicKAN


class ActiveParameters:
    """The parameters of all edges that are not removed, as a vector (P,).

    Layer by layer: the weights of the splines, then a, b, c and d of the formulas.

    Attributes:
        edges: for each layer the (targets, sources) of its splines, and those of its formulas.
    """

    def __init__(self, model: SymbolicKAN) -> None:
        self.layers = list(model.layers)
        self.edges = [
            (layer.numeric().nonzero(as_tuple=True), layer.symbolic().nonzero(as_tuple=True))
            for layer in self.layers
        ]

    def count(self) -> int:
        """P, the number of parameters."""
        return len(self.read())

    def read(self) -> Tensor:
        """The parameters, (P,)."""
        parts = []
        for layer, (numeric, symbolic) in zip(self.layers, self.edges, strict=True):
            parts += [layer.weight()[numeric].flatten(), layer.affine[symbolic].flatten()]
        return torch.cat(parts).detach()

    def write(self, theta: Tensor) -> None:
        """Sets the parameters to theta (P,)."""
        with torch.no_grad():
            start = 0
            for layer, (numeric, symbolic) in zip(self.layers, self.edges, strict=True):
                weight = layer.weight()
                stop = start + len(numeric[0]) * weight.shape[-1]
                weight[numeric] = theta[start:stop].view(-1, weight.shape[-1])
                layer.set_weight(weight)
                start, stop = stop, stop + 4 * len(symbolic[0])
                layer.affine[symbolic] = theta[start:stop].view(-1, 4)
                start = stop

    def gradient(self, loss: Tensor) -> Tensor:
        """Gradient (P,) of a scalar loss."""
        tensors = [t for la in self.layers for t in (la.kan.base_weight, la.kan.spline_weight,
                                                     la.affine)]  # fmt: skip
        grads = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
        parts = []
        for k, (numeric, symbolic) in enumerate(self.edges):
            base, spline, affine = grads[3 * k : 3 * k + 3]
            weight = torch.cat([base[..., None], spline], dim=-1)
            parts += [weight[numeric].flatten(), affine[symbolic].flatten()]
        return torch.cat(parts)

    def jacobian(self, y: Tensor, layers: list[LayerActivations]) -> Tensor:
        """Derivatives of the outputs (N, outputs) with respect to the parameters, (N, outputs, P).

        The parameters of an edge act only through its output. By the chain rule the derivative is
        that of the edge's output, times that of the network's output with respect to the sum which
        the edge adds to. So one backward pass per output is enough.
        """
        sums = [part.sums for part in layers]
        back = [
            torch.autograd.grad(
                y[:, k].sum(), sums, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for k in range(y.shape[1])
        ]
        parts = []
        for number, (activations, (numeric, symbolic)) in enumerate(
            zip(layers, self.edges, strict=True)
        ):
            sensitivity = torch.stack([grads[number] for grads in back], dim=1)  # (N, outputs, out)
            o, i = numeric
            if activations.features is not None:
                slopes = activations.features.detach()[:, None, i]  # (N, 1, edges, n + 1)
                parts.append((sensitivity[:, :, o, None] * slopes).flatten(2))
            o, i = symbolic
            if len(o):
                slopes = self._slopes_of_formulas(activations, o, i)
                parts.append((sensitivity[:, :, o, None] * slopes[:, None]).flatten(2))
        return torch.cat(parts, dim=2)

    def _slopes_of_formulas(
        self, activations: LayerActivations, targets: Tensor, sources: Tensor
    ) -> Tensor:
        """Derivatives of edges with respect to a, b, c and d, (N, edges, 4)."""
        columns = []
        for o, i in zip(targets.tolist(), sources.tolist(), strict=True):
            name = activations.layer.names[o][i]
            assert name is not None
            affine = activations.layer.affine[o, i]
            columns.append(value_and_slopes(name, activations.x[:, i], affine)[1])
        return torch.stack(columns, dim=1)
