"""A KAN layer whose edges can be removed or replaced by formulas."""

import copy
from collections import defaultdict

import torch
from torch import Tensor, nn

from kansformer.curve_fitting.function_library import FUNCTIONS
from models.kan import (
    COMPILE_ELEMENTS,
    KANLinear,
    Weights,
    activation_name,
    kan_features,
    kan_linear,
)
from models.kan_grid import check_writable


class SymbolicLayer(nn.Module):
    """A KAN layer whose edges can be removed or replaced by formulas, and whose sums can multiply.

    sum_o = Σ_i mask[o, i] · (spline of edge or a·f(b·x_i + c) + d) + bias_o

    The first sums are nodes as they are. The last 2 · products sums are multiplied in pairs, and
    each pair makes one node.

    Args:
        kan: the splines. They are copied, with the scaler multiplied into the coefficients.
        products: number of nodes that are products.

    Attributes:
        mask: buffer (out, in), False for removed edges.
        fixed: buffer (out, in), True for edges that have a formula, removed or not.
        affine: parameter (out, in, 4), a, b, c and d of the formulas.
        bias: buffer (out,), the means of removed edges.
        names: the function f of each edge, names[o][i], or None for a spline.

    Shapes: (..., in) -> (..., out - products).

    Raises:
        ValueError: more products than there are pairs of sums.
    """

    mask: Tensor
    fixed: Tensor
    bias: Tensor

    def __init__(self, kan: KANLinear, products: int = 0) -> None:
        super().__init__()
        if kan.out_features < 2 * products:
            raise ValueError(f"{products} products need {2 * products} sums")
        self.kan = _with_scaler_folded_in(kan)
        self.products = products
        shape = kan.out_features, kan.in_features
        weight = self.kan.base_weight
        self.affine = nn.Parameter(weight.new_tensor([1.0, 1.0, 0.0, 0.0]).repeat(*shape, 1))
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("fixed", torch.zeros(shape, dtype=torch.bool))
        bias = weight.new_zeros(len(weight)) if kan.bias is None else kan.bias.detach().clone()
        self.register_buffer("bias", bias)
        self.kan.bias = None
        self.names: list[list[str | None]] = [[None] * shape[1] for _ in range(shape[0])]

    @property
    def in_features(self) -> int:
        """Number of input nodes."""
        return self.kan.in_features

    @property
    def out_features(self) -> int:
        """Number of sums, two for each product."""
        return self.kan.out_features

    @property
    def plain_sums(self) -> int:
        """Number of sums that are nodes themselves, not factors of products."""
        return self.out_features - 2 * self.products

    @property
    def nodes(self) -> int:
        """Number of output nodes."""
        return self.out_features - self.products

    def symbolic(self) -> Tensor:
        """Mask (out, in) of the edges that compute formulas."""
        return self.fixed & self.mask

    def numeric(self) -> Tensor:
        """Mask (out, in) of the edges that compute splines."""
        return self.mask & ~self.symbolic()

    def formulas(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The targets and sources of the edges that compute each function, (edges,) each."""
        edges: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for o, i in self.symbolic().nonzero().tolist():
            edges[str(self.names[o][i])].append((o, i))
        device = self.mask.device
        indices = {name: torch.tensor(pairs, device=device) for name, pairs in edges.items()}
        return {name: (pairs[:, 0], pairs[:, 1]) for name, pairs in indices.items()}

    def features(self, x: Tensor) -> Tensor:
        """[b(x), B_1(x) … B_n(x)], (N, in) -> (N, in, n + 1)."""
        activation = activation_name(self.kan.base_activation)
        knots = self.kan.grid.to(x.dtype)
        values = kan_features(x, knots, self.kan.spline_order, activation).mT
        if activation is None:
            values = torch.cat([self.kan.base_activation(x)[..., None], values], dim=-1)
        return values

    def weight(self) -> Tensor:
        """Weights of the features, (out, in, n + 1)."""
        return torch.cat([self.kan.base_weight[..., None], self.kan.spline_weight], dim=-1)

    def set_weight(self, weight: Tensor) -> None:
        """Writes the weights of the features, (out, in, n + 1)."""
        with torch.no_grad():
            self.kan.base_weight.copy_(weight[..., 0])
            self.kan.spline_weight.copy_(weight[..., 1:])

    def edge_values(self, x: Tensor) -> Tensor:
        """Output of every edge, (N, in) -> (N, out, in); they add up to the sums without bias."""
        weight = self.weight() * self.numeric()[..., None]
        values = torch.einsum("nim,oim->noi", self.features(x), weight)
        rows = torch.arange(len(x))[:, None]
        for name, (o, i) in self.formulas().items():
            values = values.index_put((rows, o, i), self.apply_function(name, x, o, i))
        return values

    def apply_function(self, name: str, x: Tensor, o: Tensor, i: Tensor) -> Tensor:
        """Outputs (N, edges) of the edges from i to o if they compute that function; x: (N, in)."""
        a, b, c, d = self.affine[o, i].unbind(-1)
        return a * FUNCTIONS[name].evaluate(b * x[:, i] + c) + d

    def add_formulas(self, sums: Tensor, x: Tensor) -> Tensor:
        """Adds the edges that compute formulas to the sums (N, out)."""
        for name, (o, i) in self.formulas().items():
            sums = sums.index_add(1, o, self.apply_function(name, x, o, i))
        return sums

    def multiply(self, sums: Tensor) -> Tensor:
        """Nodes (..., nodes) from sums (..., out)."""
        if self.products == 0:
            return sums
        pairs = sums[..., self.plain_sums :]
        products = pairs[..., ::2] * pairs[..., 1::2]
        return torch.cat([sums[..., : self.plain_sums], products], dim=-1)

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
        """What the splines add to the sums, (N, in) -> (N, out), computed by the KAN layer."""
        kan = self.kan
        activation = activation_name(kan.base_activation)
        base = kan.base_weight * numeric
        weights = Weights(
            None if activation is None else base, kan.spline_weight * numeric[..., None], None
        )
        # the first call of the fast kernels takes a second or two, which small inputs do not repay
        mode = "plain" if kan.mode == "auto" and x.numel() < COMPILE_ELEMENTS else kan.mode
        y = kan_linear(x, kan.grid, kan.spline_order, activation, weights, mode)
        return y + kan.base_activation(x) @ base.T if activation is None else y

    def subset(self, sums: list[int], inputs: list[int], products: int) -> "SymbolicLayer":
        """A copy with only some of the sums and inputs.

        Args:
            sums: the sums to keep, the pairs of products last.
            inputs: the input nodes to keep.
            products: number of products among the remaining nodes.
        """
        part = copy.deepcopy(self)
        part.kan = _subset_of_kan(self.kan, sums, inputs)
        part.products = products
        part.affine = nn.Parameter(self.affine.detach()[sums][:, inputs].clone())
        part.fixed = self.fixed[sums][:, inputs].clone()
        part.mask, part.bias = self.mask[sums][:, inputs].clone(), self.bias[sums].clone()
        part.names = [[self.names[o][i] for i in inputs] for o in sums]
        return part

    def extra_repr(self) -> str:
        """Number of edges and of formulas."""
        return f"{int(self.mask.sum())} edges, {int(self.symbolic().sum())} of them formulas"


def _with_scaler_folded_in(kan: KANLinear) -> KANLinear:
    """A copy without scaler, whose coefficients are what the layer computes with."""
    check_writable(kan)
    kan = copy.deepcopy(kan)
    if kan.enable_standalone_scale_spline:
        kan.spline_weight.data = kan.scaled_spline_weight.detach().clone()
        kan.enable_standalone_scale_spline = False
        del kan.spline_scaler
    return kan


def _subset_of_kan(kan: KANLinear, outputs: list[int], inputs: list[int]) -> KANLinear:
    kan = copy.deepcopy(kan)
    kan.in_features, kan.out_features = len(inputs), len(outputs)
    kan.grid = kan.grid[inputs]
    for name in ("base_weight", "spline_weight"):
        weight = getattr(kan, name).detach()[outputs][:, inputs]
        setattr(kan, name, nn.Parameter(weight.clone()))
    return kan
