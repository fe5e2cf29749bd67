"""The network that is pruned and read: KAN layers, edges that are cut, edges that are formulas."""

import copy
from collections import defaultdict
from collections.abc import MutableSequence, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from kansformer.curve_fitting.function_library import FUNCTIONS, function_named
from models.kan import KAN, KANLinear
from models.kan_features import activation_name, features
from models.kan_ops import COMPILE_ELEMENTS, kan_linear
from models.kan_weights import Weights, check_writable
from models.plain import plain

Width = int | Sequence[int]  # sums, or (sums, products)


class SymbolicLayer(nn.Module):
    """A KAN layer whose edges can be cut or replaced by formulas, and whose sums can be multiplied.

    sum_o = Σ_i mask[o, i] · (spline edge or a·f(b·x_i + c) + d) + bias_o

    The first `sums` of these are nodes as they are; the others are multiplied in pairs, each pair
    to one node.

    Args:
        kan: the splines, copied, with the scaler multiplied into the coefficients.
        products: how many nodes are products.

    Shapes: (..., in) -> (..., out - products).
    """

    mask: Tensor
    fixed: Tensor  # (out, in), whether an edge is a formula, cut or not
    bias: Tensor

    def __init__(self, kan: KANLinear, products: int = 0) -> None:
        super().__init__()
        if kan.out_features < 2 * products:
            raise ValueError(f"{products} products need {2 * products} sums")
        self.kan = _folded(kan)
        self.products = products
        shape = kan.out_features, kan.in_features
        weight = self.kan.base_weight
        self.affine = nn.Parameter(weight.new_tensor([1.0, 1.0, 0.0, 0.0]).repeat(*shape, 1))
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("fixed", torch.zeros(shape, dtype=torch.bool))
        bias = weight.new_zeros(len(weight)) if kan.bias is None else kan.bias.detach().clone()
        self.register_buffer("bias", bias)  # what cut edges leave behind
        self.kan.bias = None
        self.names: list[list[str | None]] = [[None] * shape[1] for _ in range(shape[0])]

    @property
    def in_features(self) -> int:
        """Nodes that come in."""
        return self.kan.in_features

    @property
    def out_features(self) -> int:
        """Sums, two for each product."""
        return self.kan.out_features

    @property
    def nodes(self) -> int:
        """Nodes that go out."""
        return self.out_features - self.products

    def symbolic(self) -> Tensor:
        """Whether each edge is a formula that is not cut, (out, in)."""
        return self.fixed & self.mask

    def numeric(self) -> Tensor:
        """Whether each edge is a spline that is not cut, (out, in)."""
        return self.mask & ~self.symbolic()

    def formulas(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Places (targets, sources) of the edges with each function, cut ones left out."""
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for o, i in self.symbolic().nonzero().tolist():
            places[str(self.names[o][i])].append((o, i))
        device = self.mask.device
        tensors = {name: torch.tensor(found, device=device) for name, found in places.items()}
        return {name: (found[:, 0], found[:, 1]) for name, found in tensors.items()}

    def features(self, x: Tensor) -> Tensor:
        """[b(x), B_1(x) … B_n(x)] of (N, in), as (N, in, n + 1)."""
        return spline_features(self.kan, x)

    def weight(self) -> Tensor:
        """Weights of the features, (out, in, n + 1)."""
        return torch.cat([self.kan.base_weight[..., None], self.kan.spline_weight], dim=-1)

    def set_weight(self, weight: Tensor) -> None:
        """Puts weights (out, in, n + 1) of the features in place."""
        with torch.no_grad():
            self.kan.base_weight.copy_(weight[..., 0])
            self.kan.spline_weight.copy_(weight[..., 1:])

    def edge_values(self, x: Tensor) -> Tensor:
        """Output of every edge, (N, in) -> (N, out, in); they add up to the sums less the bias."""
        weight = self.weight() * self.numeric()[..., None]
        values = torch.einsum("nim,oim->noi", self.features(x), weight)
        for name, (o, i) in self.formulas().items():
            values = values.index_put((torch.arange(len(x))[:, None], o, i), self.apply_function(
                name, x, o, i))  # fmt: skip
        return values

    def apply_function(self, name: str, x: Tensor, o: Tensor, i: Tensor) -> Tensor:
        """Outputs (N, edges) of the edges to o from i as that function, of (N, in)."""
        a, b, c, d = self.affine[o, i].unbind(-1)
        return a * FUNCTIONS[name].evaluate(b * x[:, i] + c) + d

    def add_formulas(self, sums: Tensor, x: Tensor) -> Tensor:
        """Sums (N, out) with what the edges that are formulas add to them."""
        for name, (o, i) in self.formulas().items():
            sums = sums.index_add(1, o, self.apply_function(name, x, o, i))
        return sums

    def multiply(self, sums: Tensor) -> Tensor:
        """Nodes (..., nodes) from sums (..., out)."""
        if self.products == 0:
            return sums
        plain = self.out_features - 2 * self.products
        pairs = sums[..., plain:]
        return torch.cat([sums[..., :plain], pairs[..., ::2] * pairs[..., 1::2]], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Nodes (..., out - products) from (..., in)."""
        flat = x.reshape(-1, x.shape[-1])
        sums = self.bias.expand(len(flat), -1)
        numeric = self.numeric()
        if numeric.any():
            sums = sums + self.splines(flat, numeric)
        sums = self.add_formulas(sums, flat)
        return self.multiply(sums).reshape(*x.shape[:-1], self.nodes)

    def splines(self, x: Tensor, numeric: Tensor) -> Tensor:
        """What the splines add to the sums, (N, in) -> (N, out), by the KAN layer's kernels."""
        kan = self.kan
        activation = activation_name(kan.base_activation)
        base = kan.base_weight * numeric
        weights = Weights(
            None if activation is None else base, kan.spline_weight * numeric[..., None], None
        )
        # the kernels' first call imports for a second or two, which small inputs do not repay
        mode = "plain" if kan.mode == "auto" and x.numel() < COMPILE_ELEMENTS else kan.mode
        y = kan_linear(x, kan.grid, kan.spline_order, activation, weights, mode)
        return y + kan.base_activation(x) @ base.T if activation is None else y

    def extra_repr(self) -> str:
        """How many edges there are."""
        return f"{int(self.mask.sum())} edges, {int(self.symbolic().sum())} of them formulas"


class SymbolicKAN(nn.Module):
    """A KAN that can be fitted, pruned and read as a formula; in float64 unless cast.

    Args:
        width: nodes from input to output; (sums, products) makes the last nodes of a layer products
            of two sums each.
        seed: of the initial parameters, from an own generator; None draws from the global one.
        names: of the inputs; default x_1, x_2, …
        options: as in `KANLinear`, `grid_size` and `spline_order` among them.

    Attributes:
        layers: `SymbolicLayer`s.
        inputs: buffer with the columns of x that are used, see `prune_input`.

    Shapes: (..., inputs) -> (..., outputs).
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
        if seed is not None and device.type != "meta":  # where nothing is drawn
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
        """A copy of a network as this class; of a `KAN` or one of its layers in float64.

        Raises:
            TypeError: none of these.
            ValueError: weights are computed from other tensors, see `check_writable`.
        """
        check_writable(model)
        if isinstance(model, cls):
            return copy.deepcopy(model)
        if not isinstance(model, (KAN, KANLinear)):
            raise TypeError(
                f"a KAN, KANLinear or SymbolicKAN is needed, not {type(model).__name__}"
            )
        own = cls.__new__(cls)
        nn.Module.__init__(own)
        kans = cast(Sequence[KANLinear], [model] if isinstance(model, KANLinear) else model.layers)
        layers = [SymbolicLayer(copy.deepcopy(kan).double()) for kan in kans]
        own.layers = cast(Any, nn.ModuleList(layers))
        own.register_buffer("inputs", torch.arange(own.layers[0].in_features))
        own.names = _checked_names(None, len(own.inputs))
        own.report = []
        return own.train(model.training)

    @property
    def width(self) -> list[tuple[int, int]]:
        """(sums, products) of the inputs and of every layer."""
        layers = list(self.layers)
        first = layers[0].in_features, 0
        return [first] + [(la.out_features - 2 * la.products, la.products) for la in layers]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., outputs) from all inputs (..., inputs)."""
        x = self.select(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def select(self, x: Tensor) -> Tensor:
        """The columns of x that are used."""
        if x.shape[-1] != len(self.names):
            raise ValueError(f"the last dimension is {x.shape[-1]}, not {len(self.names)}")
        if len(self.inputs) < len(self.names):
            x = x[..., self.inputs]
        return x.to(self.layers[0].affine.dtype)

    def edge_count(self) -> int:
        """Edges that are not cut."""
        return sum(int(layer.mask.sum()) for layer in self.layers)

    def fix(
        self, layer: int, source: int, target: int, name: str | None, affine: Tensor | None = None
    ) -> None:
        """Makes an edge a formula in place, or with None a spline again."""
        if name is not None:
            function_named(name)
        own = self.layers[layer]
        own.names[target][source] = name
        own.fixed[target, source] = name is not None
        if affine is not None:
            with torch.no_grad():
                own.affine[target, source] = affine.to(own.affine)


def spline_features(kan: KANLinear, x: Tensor) -> Tensor:
    """[b(x), B_1(x) … B_n(x)] of (N, in), as (N, in, n + 1)."""
    activation = activation_name(kan.base_activation)
    values = features(x, kan.grid.to(x.dtype), kan.spline_order, activation).mT
    if activation is None:
        values = torch.cat([kan.base_activation(x)[..., None], values], dim=-1)
    return values


def _folded(kan: KANLinear) -> KANLinear:
    """A copy that has its scaler in the coefficients, where a mask and a fit see one number."""
    check_writable(kan)
    kan = copy.deepcopy(kan)
    if kan.enable_standalone_scale_spline:
        kan.spline_weight.data = kan.scaled_spline_weight.detach().clone()
        kan.enable_standalone_scale_spline = False
        del kan.spline_scaler
    return kan


def _checked_names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [f"x_{i}" for i in range(1, count + 1)]
    names = [str(name) for name in names]
    if len(set(names)) != count or len(names) != count:
        raise ValueError(f"{count} different names are needed, not {names}")
    return names
