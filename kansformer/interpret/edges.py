"""The two layers of a feed-forward block, split into their edges.

A layer, `KANLinear`, `GroupKANLinear` or the `nn.Linear` of an MLP, is a sum over edges:

    y_o = Σ_i φ_oi(x_i) + bias_o

and an edge is φ_oi(x) = Σ_n weight[o, i, n] · feature[i, n](x), where the first feature is the base
and the others are B-splines. In a group-KAN, the edges of an input are multiples of one function;
in an MLP's layers, edges are straight lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import splines
from models.kan import GroupKANLinear, KANLinear
from models.vit_model import VisionTransformer

EdgeLayer = KANLinear | GroupKANLinear | nn.Linear
LAYERS = ("fc1", "fc2")
POINTS = 201  # per curve
BINS = 48  # per histogram


def edge_layer(model: VisionTransformer, block: int, layer: str) -> EdgeLayer:
    """A layer of a feed-forward block, "fc1" or "fc2".

    Raises:
        ValueError: there is no such block or layer.
    """
    if not 0 <= block < len(model.blocks) or layer not in LAYERS:
        raise ValueError(
            f"no layer {layer!r} in block {block}; there are {' and '.join(LAYERS)} in blocks 0 to"
            f" {len(model.blocks) - 1}"
        )
    module = model.get_submodule(f"blocks.{block}.mlp.{layer}")
    assert isinstance(module, KANLinear | GroupKANLinear | nn.Linear)
    return module


@torch.no_grad()
def edge_terms(layer: EdgeLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the inputs, and the edges' weights for them.

    Shapes: x (N, in) -> features (N, in, n), the base first, and weights (out, in, n).
    """
    if isinstance(layer, KANLinear):
        base = layer.base_activation(x.clone())[..., None]
        weights = torch.cat([layer.base_weight[..., None], layer.scaled_spline_weight], dim=-1)
        return torch.cat([base, layer.b_splines(x)], dim=-1), weights
    if isinstance(layer, GroupKANLinear):
        features = torch.stack([layer.base_activation(x.clone()), group_splines(layer, x)], dim=-1)
        return features, layer.weight[..., None].expand(-1, -1, 2)
    return x[..., None], layer.weight[..., None]


def group_splines(layer: GroupKANLinear, x: Tensor) -> Tensor:
    """The spline of each input's group, without the base, (N, in) -> (N, in)."""
    grouped = x.unflatten(-1, (layer.groups, -1)).mT  # (N, channels of a group, groups)
    basis = splines.b_spline_basis(grouped, layer.grid, layer.spline_order)
    return torch.einsum("ncgj,gj->ngc", basis, layer.spline_weight).flatten(1)


@torch.no_grad()
def output_contributions(layer: EdgeLayer, x: Tensor, output: int) -> Tensor:
    """What each input adds to one output, φ_oi(x_i), (N, in) -> (N, in).

    Their sum over the inputs, plus the bias, is the layer's output.
    """
    features, weights = edge_terms(layer, x)
    return torch.einsum("nij,ij->ni", features, weights[output])


@torch.no_grad()
def input_contributions(layer: EdgeLayer, x: Tensor, source: int) -> Tensor:
    """What one input adds to each output, φ_oi(x_i), (N, in) -> (N, out)."""
    features, weights = edge_terms(layer, x)
    return features[:, source] @ weights[:, source].T


@torch.no_grad()
def split_output(layer: EdgeLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The contributions of the bases and of the splines to the output, (N, out) each; no bias."""
    features, weights = edge_terms(layer, x)
    base = features[..., 0] @ weights[..., 0].T
    spline = features[..., 1:].flatten(1) @ weights[..., 1:].flatten(1).T
    return base, spline


@torch.no_grad()
def edge_deviations(layer: EdgeLayer, x: Tensor) -> Tensor:
    """Standard deviation of every edge's output over samples, (N, in) -> (out, in).

    Does not allocate a tensor of (N, in, out).
    """
    if isinstance(layer, KANLinear):
        return layer.edge_deviations(x)
    features, weights = edge_terms(layer, x)
    return features.sum(dim=-1).std(dim=0) * weights[..., 0].abs()


def grid_range(layer: EdgeLayer, source: int) -> tuple[float, float] | None:
    """Both ends of the grid of an input's splines; None for an MLP's layer."""
    if isinstance(layer, nn.Linear):
        return None
    row = source
    if isinstance(layer, GroupKANLinear):
        row = source * layer.groups // layer.in_features
    k = layer.spline_order
    return float(layer.grid[row, k]), float(layer.grid[row, layer.grid.shape[1] - k - 1])


def outside_grid(layer: EdgeLayer, x: Tensor) -> float | None:
    """Share of the inputs (N, in) that lie outside the grid; None for an MLP's layer."""
    if isinstance(layer, nn.Linear):
        return None
    k = layer.spline_order
    inputs = layer.spline_inputs(x)  # (N, splines)
    low, high = layer.grid[:, k], layer.grid[:, layer.grid.shape[1] - k - 1]
    return float(((inputs < low) | (inputs > high)).float().mean())


@dataclass(frozen=True)
class Curve:
    """A learned function, and the histogram of its inputs.

    Attributes:
        target, source: output and input of the edge; or None and the index of a group.
        x, y, base, spline: (POINTS,); y = base + spline.
        counts, bounds: (BINS,) and (BINS + 1,), the histogram of the recorded inputs.
        grid: both ends of the splines' grid.
        outside: share of the recorded inputs outside it.
    """

    target: int | None
    source: int
    x: Tensor
    y: Tensor
    base: Tensor
    spline: Tensor
    counts: Tensor
    bounds: Tensor
    grid: tuple[float, float]
    outside: float

    @property
    def title(self) -> str:
        """The edge, "5 → 12", or the group."""
        return f"group {self.source}" if self.target is None else f"{self.source} → {self.target}"


@torch.no_grad()
def edge_function(
    model: VisionTransformer, block: int, layer: str, target: int, source: int, inputs: Tensor
) -> Curve:
    """The function on an edge, over the range of its grid and of its inputs.

    Args:
        layer: "fc1" or "fc2".
        target, source: indices of the output and of the input.
        inputs: (N, in) recorded inputs of the layer.

    Raises:
        ValueError: no such edge, or the block is an MLP, which has no learned functions.
    """
    edges = _with_splines(edge_layer(model, block, layer), block)
    if not (0 <= target < edges.out_features and 0 <= source < edges.in_features):
        raise ValueError(
            f"no edge {source} → {target} in a layer with {edges.in_features} inputs and"
            f" {edges.out_features} outputs"
        )
    points = _curve_points(edges, source, inputs[:, source])
    x = points.new_zeros(POINTS, edges.in_features)
    x[:, source] = points
    features, weights = edge_terms(edges, x)
    parts = features[:, source] * weights[target, source]
    return _curve((target, source), edges, source, points, parts, inputs[:, source])


@torch.no_grad()
def group_functions(
    model: VisionTransformer, block: int, layer: str, inputs: Tensor
) -> Sequence[Curve]:
    """The functions of all groups of a group-KAN layer, before the weights of its edges.

    Raises:
        ValueError: no such layer, or it is not a group-KAN layer.
    """
    edges = edge_layer(model, block, layer)
    if not isinstance(edges, GroupKANLinear):
        raise ValueError(f"block {block} is not a group-kan block; use edge_function")
    per_group = edges.in_features // edges.groups
    group_inputs = edges.spline_inputs(inputs)  # (N, groups)
    curves = []
    for group in range(edges.groups):
        source = group * per_group
        points = _curve_points(edges, source, group_inputs[:, group])
        x = points[:, None].expand(-1, edges.in_features)
        parts = edge_terms(edges, x)[0][:, source]
        curves.append(_curve((None, group), edges, source, points, parts, group_inputs[:, group]))
    return curves


def _with_splines(layer: EdgeLayer, block: int) -> KANLinear | GroupKANLinear:
    if isinstance(layer, nn.Linear):
        raise ValueError(f"block {block} is an MLP: its edges are straight lines, not functions")
    return layer


def _curve_points(layer: EdgeLayer, source: int, inputs: Tensor) -> Tensor:
    """Points to draw a curve at, (POINTS,), over the grid and 99.9 % of the inputs."""
    ends = grid_range(layer, source)
    assert ends is not None
    ranks = inputs.sort().values
    cut = len(ranks) // 2000
    low = min(ends[0], float(ranks[cut]))
    high = max(ends[1], float(ranks[len(ranks) - 1 - cut]))
    return torch.linspace(low, high, POINTS, device=inputs.device, dtype=inputs.dtype)


def _curve(
    index: tuple[int | None, int],
    layer: EdgeLayer,
    channel: int,
    x: Tensor,
    parts: Tensor,
    inputs: Tensor,
) -> Curve:
    """The curve whose parts (POINTS, n) are features times weights, the base first."""
    ends = grid_range(layer, channel)
    assert ends is not None
    bounds = torch.linspace(float(x[0]), float(x[-1]), BINS + 1)
    counts = torch.histogram(inputs.detach().float().cpu(), bounds).hist
    outside = float(((inputs < ends[0]) | (inputs > ends[1])).float().mean())
    x, parts = x.detach().cpu(), parts.detach().cpu()
    base, spline = parts[:, 0], parts[:, 1:].sum(dim=1)
    return Curve(*index, x, base + spline, base, spline, counts, bounds, ends, outside)
