"""What the two layers of a feed-forward block compute, taken apart edge by edge.

Every layer here, `KANLinear`, `GroupKANLinear` or the `nn.Linear` of an MLP, is a sum over edges:

    y_o = Σ_i φ_oi(x_i) + bias_o

and an edge is φ_oi(x) = Σ_n weight[o, i, n] · feature[i, n](x), where the first feature is the base
and the others are B-splines. In a group-KAN all edges that leave an input share one function but
for a factor, and in an MLP's layers they are straight lines.
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
POINTS = 201  # of a curve
BINS = 48  # of its histogram


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
    found = model.get_submodule(f"blocks.{block}.mlp.{layer}")
    assert isinstance(found, KANLinear | GroupKANLinear | nn.Linear)
    return found


@torch.no_grad()
def edge_terms(layer: EdgeLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the inputs, and the weights with which edges add them up.

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
    """The spline of each input's group, without the base, (N, in) -> same."""
    grouped = x.unflatten(-1, (layer.groups, -1)).mT  # (N, channels of a group, groups)
    basis = splines.b_spline_basis(grouped, layer.grid, layer.spline_order)
    return torch.einsum("ncgj,gj->ngc", basis, layer.spline_weight).flatten(1)


@torch.no_grad()
def output_contributions(layer: EdgeLayer, x: Tensor, output: int) -> Tensor:
    """What each input adds to one output, φ_oi(x_i), (N, in) -> (N, in).

    Their sum over the inputs, and the bias, is the layer's output.
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
    """The parts of the output that the bases and the splines give, (N, out) each; no bias."""
    features, weights = edge_terms(layer, x)
    base = features[..., 0] @ weights[..., 0].T
    spline = features[..., 1:].flatten(1) @ weights[..., 1:].flatten(1).T
    return base, spline


@torch.no_grad()
def edge_deviations(layer: EdgeLayer, x: Tensor) -> Tensor:
    """Standard deviation of every edge's output over samples (N, in), (out, in).

    No tensor of (N, in, out) is made.
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
    places = layer.spline_inputs(x)  # (N, splines)
    low, high = layer.grid[:, k], layer.grid[:, layer.grid.shape[1] - k - 1]
    return float(((places < low) | (places > high)).float().mean())


@dataclass(frozen=True)
class Curve:
    """A learned function, and what flows into it.

    Attributes:
        target, source: the edge from input `source`; target is None for the function of the group
            with the number `source`.
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
        target, source: numbers of the output and of the input.
        inputs: (N, in) recorded inputs of the layer.

    Raises:
        ValueError: no such edge, or the block is an MLP, which has no learned functions.
    """
    own = _with_splines(edge_layer(model, block, layer), block)
    if not (0 <= target < own.out_features and 0 <= source < own.in_features):
        raise ValueError(
            f"no edge {source} → {target} in a layer of {own.in_features} inputs and"
            f" {own.out_features} outputs"
        )
    places = _places(own, source, inputs[:, source])
    x = places.new_zeros(POINTS, own.in_features)
    x[:, source] = places
    features, weights = edge_terms(own, x)
    parts = features[:, source] * weights[target, source]
    return _curve((target, source), own, source, places, parts, inputs[:, source])


@torch.no_grad()
def group_functions(
    model: VisionTransformer, block: int, layer: str, inputs: Tensor
) -> Sequence[Curve]:
    """The functions of all groups of a group-KAN layer, before the weights of its edges.

    Raises:
        ValueError: no such layer, or it is of another kind.
    """
    own = edge_layer(model, block, layer)
    if not isinstance(own, GroupKANLinear):
        raise ValueError(f"block {block} is no group-kan block; its edges have functions each")
    per_group = own.in_features // own.groups
    flowing = own.spline_inputs(inputs)  # (N, groups)
    curves = []
    for group in range(own.groups):
        source = group * per_group
        places = _places(own, source, flowing[:, group])
        x = places[:, None].expand(-1, own.in_features)
        parts = edge_terms(own, x)[0][:, source]
        curves.append(_curve((None, group), own, source, places, parts, flowing[:, group]))
    return curves


def _with_splines(layer: EdgeLayer, block: int) -> KANLinear | GroupKANLinear:
    if isinstance(layer, nn.Linear):
        raise ValueError(f"block {block} is an MLP: its edges are straight lines, not functions")
    return layer


def _places(layer: EdgeLayer, source: int, inputs: Tensor) -> Tensor:
    """Where to draw a curve, (POINTS,): over the grid, and all but a thousandth of the inputs."""
    ends = grid_range(layer, source)
    assert ends is not None
    ranks = inputs.sort().values
    cut = len(ranks) // 2000
    low = min(ends[0], float(ranks[cut]))
    high = max(ends[1], float(ranks[len(ranks) - 1 - cut]))
    return torch.linspace(low, high, POINTS, device=inputs.device, dtype=inputs.dtype)


def _curve(
    place: tuple[int | None, int],
    layer: EdgeLayer,
    channel: int,
    x: Tensor,
    parts: Tensor,
    inputs: Tensor,
) -> Curve:
    """The curve of features times weights, (POINTS, n), with the base first."""
    ends = grid_range(layer, channel)
    assert ends is not None
    bounds = torch.linspace(float(x[0]), float(x[-1]), BINS + 1)
    counts = torch.histogram(inputs.detach().float().cpu(), bounds).hist
    outside = float(((inputs < ends[0]) | (inputs > ends[1])).float().mean())
    x, parts = x.detach().cpu(), parts.detach().cpu()
    base, spline = parts[:, 0], parts[:, 1:].sum(dim=1)
    return Curve(*place, x, base + spline, base, spline, counts, bounds, ends, outside)
