"""Pruning the feed-forward blocks of a trained model: hidden units, edges, or all splines.

Removing a hidden unit removes an output of the block's first layer and an input of the second. If
there is a LayerNorm between them (`kan_norm`), its mean and variance are then those of the
remaining units: the block computes what it would if the unit had never existed. A smaller model
cannot keep the statistics of all units, since the variance depends on the value of each. Without a
norm, the block's output only loses the unit's contributions.

`refit` then fits the second layers by least squares to the outputs that the blocks had before. This
compensates for the change of the norm, for the mean of the removed units, and for whatever the
remaining units can predict of them (He, Zhang and Sun, 2017, prune channels of convolutions in the
same way).

All functions return a copy. A model whose weights are computed from other tensors (weight norm,
pruning masks) is refused.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kansformer.interpret.block_activations import BlockRecord
from kansformer.interpret.block_scores import BlockScores
from kansformer.interpret.edges import LAYERS, EdgeLayer, edge_layer, edge_terms
from models.kan import GroupKANLinear, KANLinear
from models.kan_grid import check_writable
from models.vit_model import VisionTransformer, ViTConfig

RIDGE = 1e-3  # penalty of a refit on changes, relative to the mean square of the features
MIN_SCALE = 0.1  # of `spline_scaler` after a refit, relative to the layer's mean


def strongest_units(config: ViTConfig, scores: Sequence[BlockScores], keep: float) -> list[Tensor]:
    """The hidden units with the highest scores in each block, in ascending order.

    A group-KAN keeps the same number of units in each group, since its groups have equal sizes.

    Args:
        scores: for each block.
        keep: fraction of the units to keep, in (0, 1]; at least one per block, or per group.

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the share of units to keep must be in (0, 1], not {keep}")
    groups = config.groups if config.ffn == "group-kan" else 1
    kept = []
    for block in scores:
        by_group = block.units.view(groups, -1)
        count = max(round(keep * by_group.shape[1]), 1)
        first = torch.arange(groups, device=block.units.device)[:, None] * by_group.shape[1]
        best = by_group.argsort(dim=1, descending=True, stable=True)[:, :count] + first
        kept.append(best.flatten().sort().values.cpu())
    return kept


@torch.no_grad()
def compact(model: VisionTransformer, kept: Sequence[Tensor]) -> VisionTransformer:
    """A smaller model with only some of the hidden units, in eval mode.

    Args:
        kept: for each block the numbers of the units to keep, ascending; in a group-KAN the same
            count from each group.

    Raises:
        ValueError: invalid numbers, or groups that would differ in size.
    """
    config, kept = model.config, [units.long() for units in kept]
    _check_kept(config, kept)
    check_writable(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for block, units in enumerate(kept):
        start = f"blocks.{block}.mlp."
        first, second = (edge_layer(model, block, name) for name in LAYERS)
        rows = {f"fc1.{name}" for name in (*_per_edge(first), "bias")}
        rows |= {"norm.weight", "norm.bias"}
        if isinstance(second, KANLinear):
            rows.add("fc2.grid")
        columns = {f"fc2.{name}" for name in _per_edge(second)}
        for name in rows | columns:
            if start + name in state:
                dim = 0 if name in rows else 1
                value = state[start + name]
                state[start + name] = value.index_select(dim, units.to(value.device))
    widths = tuple(len(units) for units in kept)
    return _model_with(replace(config, hidden_widths=widths), state)


def _per_edge(layer: EdgeLayer) -> tuple[str, ...]:
    """Names of a layer's parameters (out, in, ...)."""
    if isinstance(layer, KANLinear):
        return "base_weight", "spline_weight", "spline_scaler"
    return ("weight",)


def _check_kept(config: ViTConfig, kept: Sequence[Tensor]) -> None:
    if len(kept) != config.depth:
        raise ValueError(f"units of {len(kept)} blocks are given, and there are {config.depth}")
    for block, (units, width) in enumerate(zip(kept, config.block_widths, strict=True)):
        ascending = len(units) > 0 and bool((units.diff() > 0).all())
        if not ascending or units[0] < 0 or units[-1] >= width:
            raise ValueError(f"block {block}: units must be ascending numbers below {width}")
        if config.ffn == "group-kan":
            counts = torch.bincount(units * config.groups // width, minlength=config.groups)
            if counts.unique().numel() > 1:
                raise ValueError(f"block {block}: every group must keep as many units")


def _copy(model: VisionTransformer) -> VisionTransformer:
    """A copy whose weights can be written to.

    Raises:
        ValueError: weights are computed from other tensors, see `check_writable`.
    """
    check_writable(model)
    return copy.deepcopy(model)


def _model_with(config: ViTConfig, state: dict[str, Tensor]) -> VisionTransformer:
    with torch.device("meta"):
        made = VisionTransformer(config)
    made.load_state_dict(state, assign=True)
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    return made.eval()


@torch.no_grad()
def refit(model: VisionTransformer, records: Sequence[BlockRecord]) -> VisionTransformer:
    """A copy whose second layers are fitted by least squares to the recorded outputs.

    In a group-KAN the weights are fitted and the splines are kept.

    Args:
        records: of the model before units were removed, on pictures that it was trained on.
    """
    made = _copy(model)
    for block, record in enumerate(records):
        ffn = made.get_submodule(f"blocks.{block}.mlp")
        inputs: list[Tensor] = []
        fc2 = edge_layer(made, block, "fc2")
        handle = fc2.register_forward_pre_hook(lambda _, args, seen=inputs: seen.append(args[0]))
        now = ffn(record.inputs.to(made.pos_embed))
        handle.remove()
        _refit_layer(fc2, inputs[0], record.outputs.to(now) - now)
    return made


def _refit_layer(layer: EdgeLayer, x: Tensor, missing: Tensor) -> None:
    """Changes a layer in place so that its outputs grow by `missing` (N, out), by least squares."""
    features, _ = edge_terms(layer, x)
    if not isinstance(layer, KANLinear):
        features = features.sum(dim=-1, keepdim=True)
    a = features.flatten(1).double()
    if layer.bias is not None:
        a = torch.cat([a, a.new_ones(len(a), 1)], dim=1)
    gram = a.T @ a
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, a.T @ missing.double()).T.float()  # (out, columns)
    if layer.bias is not None:
        layer.bias.add_(change[:, -1])
        change = change[:, :-1]
    if not isinstance(layer, KANLinear):
        layer.weight.add_(change)
        return
    change = change.unflatten(1, (layer.in_features, -1))
    layer.base_weight.add_(change[..., 0])
    wanted = layer.scaled_spline_weight + change[..., 1:]
    if layer.enable_standalone_scale_spline:
        scale = layer.spline_scaler
        least = MIN_SCALE * scale.abs().mean().clamp_min(1e-6)
        scale.copy_(torch.where(scale.abs() < least, least, scale))
        wanted = wanted / scale[..., None]
    layer.spline_weight.copy_(wanted)


@torch.no_grad()
def remove_edges(
    model: VisionTransformer, scores: Sequence[BlockScores], keep: float
) -> VisionTransformer:
    """A copy in which the weakest edges of each layer are zero.

    The layers stay dense, so this saves no time, but leaves fewer functions to look at. If the copy
    is trained further, the splines of these edges stay zero, while their bases and weights may
    become nonzero again.

    Args:
        scores: for each block.
        keep: fraction of the edges to keep, in (0, 1].

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the share of edges to keep must be in (0, 1], not {keep}")
    made = _copy(model)
    for block, block_scores in enumerate(scores):
        for name, ranks in (("fc1", block_scores.first), ("fc2", block_scores.second)):
            layer = edge_layer(made, block, name)
            count = max(round(keep * ranks.numel()), 1)
            weak = torch.ones_like(ranks, dtype=torch.bool).flatten()
            weak[ranks.flatten().argsort(descending=True)[:count]] = False
            for parameter in _per_edge(layer):
                if hasattr(layer, parameter):
                    getattr(layer, parameter)[weak.view_as(ranks)] = 0
    return made


@torch.no_grad()
def without_splines(model: VisionTransformer) -> VisionTransformer:
    """A copy whose splines are zero, which leaves the base functions and the weights."""
    made = _copy(model)
    for block in range(model.config.depth):
        for name in LAYERS:
            layer = edge_layer(made, block, name)
            if isinstance(layer, KANLinear | GroupKANLinear):
                layer.spline_weight.zero_()
    return made


def removed_share(model: VisionTransformer) -> float:
    """Fraction of the blocks' edges that are zero."""
    zero, total = 0, 0
    for block in range(model.config.depth):
        for name in LAYERS:
            layer = edge_layer(model, block, name)
            dead = torch.ones_like(getattr(layer, _per_edge(layer)[0]), dtype=torch.bool)
            for parameter in _per_edge(layer)[: 2 if isinstance(layer, KANLinear) else 1]:
                value = getattr(layer, parameter)
                dead &= (value == 0) if value.ndim == 2 else (value == 0).all(dim=-1)
            zero, total = zero + int(dead.sum()), total + dead.numel()
    return zero / total
