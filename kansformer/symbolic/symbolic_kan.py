"""The network that is fitted, pruned and read as a formula."""

import copy
from collections.abc import MutableSequence, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from kansformer.curve_fitting.function_library import function_named
from kansformer.symbolic.symbolic_layer import SymbolicLayer
from models.kan import KAN, KANLinear
from models.kan_grid import check_writable
from models.plain import plain

Width = int | Sequence[int]  # sums, or (sums, products)


class SymbolicKAN(nn.Module):
    """A KAN that can be fitted, pruned and read as a formula; in float64 unless cast.

    Args:
        width: number of nodes from input to output. (sums, products) makes the last nodes of a
            layer products of two sums each.
        seed: for the initial parameters, with a separate generator; None uses the global one.
        names: of the inputs; default x_1, x_2, …
        options: as in `KANLinear`, for example `grid_size` and `spline_order`.

    Attributes:
        layers: `SymbolicLayer`s.
        inputs: buffer with the columns of x that are used, see `prune_input`.
        report: list of `EdgeReport` after `auto_symbolic`, else empty.

    Shapes: (..., inputs) -> (..., outputs).

    Raises:
        ValueError: an invalid width or invalid names.
    """

    layers: MutableSequence[SymbolicLayer]
    inputs: Tensor

    def __init__(
        self,
        width: Sequence[Width],
        seed: int | None = None,
        names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        sizes = [(w, 0) if isinstance(w, int) else tuple(w) for w in plain(list(width))]
        if len(sizes) < 2 or any(len(s) != 2 or min(s) < 0 or sum(s) < 1 for s in sizes):
            raise ValueError(f"width must hold two or more of n or (sums, products), not {width}")
        if sizes[0][1]:
            raise ValueError("inputs cannot be products")
        generator = None
        device = torch.get_default_device()
        if seed is not None and device.type != "meta":  # nothing is drawn on the meta device
            generator = torch.Generator(device).manual_seed(plain(seed))
        self.layers = cast(Any, nn.ModuleList())
        for before, (sums, products) in pairwise(sizes):
            kan = KANLinear(sum(before), sums + 2 * products, generator=generator, **options)
            self.layers.append(SymbolicLayer(kan.double(), products))
        self.register_buffer("inputs", torch.arange(sizes[0][0]))
        self.names = _checked_names(names, sizes[0][0])
        self.report: list[Any] = []

    @classmethod
    def of(cls, model: "nn.Module") -> "SymbolicKAN":
        """A copy of a network as a `SymbolicKAN`; a `KAN` or one of its layers becomes float64.

        Raises:
            TypeError: another kind of module.
            ValueError: weights are computed from other tensors, see `check_writable`.
        """
        check_writable(model)
        if isinstance(model, cls):
            return copy.deepcopy(model)
        if not isinstance(model, (KAN, KANLinear)):
            raise TypeError(
                f"a KAN, KANLinear or SymbolicKAN is needed, not {type(model).__name__}"
            )
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        kans = cast(Sequence[KANLinear], [model] if isinstance(model, KANLinear) else model.layers)
        layers = [SymbolicLayer(copy.deepcopy(kan).double()) for kan in kans]
        network.layers = cast(Any, nn.ModuleList(layers))
        network.register_buffer("inputs", torch.arange(network.layers[0].in_features))
        network.names = _checked_names(None, len(network.inputs))
        network.report = []
        return network.train(model.training)

    @property
    def width(self) -> list[tuple[int, int]]:
        """(sums, products) of the inputs and of every layer."""
        return [
            (self.layers[0].in_features, 0),
            *((layer.plain_sums, layer.products) for layer in self.layers),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., outputs) from all inputs (..., inputs)."""
        x = self.select(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def select(self, x: Tensor) -> Tensor:
        """The columns of x that are used, in the network's dtype.

        Raises:
            ValueError: the last dimension of x is not the number of inputs.
        """
        if x.shape[-1] != len(self.names):
            raise ValueError(f"the last dimension is {x.shape[-1]}, not {len(self.names)}")
        if len(self.inputs) < len(self.names):
            x = x[..., self.inputs]
        return x.to(self.layers[0].affine.dtype)

    def edge_count(self) -> int:
        """Number of edges that are not removed."""
        return sum(int(layer.mask.sum()) for layer in self.layers)

    def layer_of_edge(self, layer: int, source: int, target: int) -> SymbolicLayer:
        """The layer with this number, which has an edge from source to target.

        Raises:
            ValueError: no such layer or edge; the message says which there are.
        """
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"the layers are 0 to {len(self.layers) - 1}, not {layer}")
        holder = self.layers[layer]
        if not (0 <= source < holder.in_features and 0 <= target < holder.out_features):
            raise ValueError(
                f"the edges of layer {layer} lead from 0 to {holder.in_features - 1} to 0 to"
                f" {holder.out_features - 1}, not from {source} to {target}"
            )
        return holder

    def fix(
        self, layer: int, source: int, target: int, name: str | None, affine: Tensor | None = None
    ) -> None:
        """Makes an edge a formula in place, or a spline again if the name is None.

        Args:
            name: of a function in FUNCTIONS.
            affine: a, b, c and d (4,); default: those that the edge has.

        Raises:
            ValueError: an unknown function.
        """
        if name is not None:
            function_named(name)
        holder = self.layers[layer]
        holder.names[target][source] = name
        holder.fixed[target, source] = name is not None
        if affine is not None:
            with torch.no_grad():
                holder.affine[target, source] = affine.to(holder.affine)


def _checked_names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [f"x_{i}" for i in range(1, count + 1)]
    names = [str(name) for name in names]
    if len(set(names)) != count or len(names) != count:
        raise ValueError(f"{count} different names are needed, not {names}")
    return names
