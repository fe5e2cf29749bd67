"""Smaller models of trained ones: weak hidden units are taken out, weak edges set to zero.

A hidden unit that is removed leaves the outputs of its block's first layer and the inputs of the
second. Where a LayerNorm stands between the two (`kan_norm`), it leaves the norm's statistics too:
mean and variance are those of the units that remain. No compact model could keep the statistics of
all units, since the variance needs each one's square. So "removed" means: what the block computes
if the unit had never been there, in the norm and behind it. Without a norm, the block is what it
was less the unit's contributions.

`refit` then fits the second layers anew, by least squares, to what the blocks gave before. That
makes up for the change of the norm, for the mean of what was removed, and for what the remaining
units know of it (He, Zhang and Sun, 2017, prune channels of convolutions so).

A model whose weights are computed from other tensors (weight norm, pruning masks) is refused.
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
from models.kan_grid import refine_grid
from models.kan_weights import check_writable
from models.vit_model import VisionTransformer, ViTConfig

RIDGE = 1e-3  # pull of a refit towards the present weights, in units of the features' mean square
LEAST_SCALE = 0.1  # of an edge's `spline_scaler` after a refit, in units of the layer's mean


def strongest_units(config: ViTConfig, scores: Sequence[BlockScores], keep: float) -> list[Tensor]:
    """The hidden units of the highest scores in each block, in ascending order.

    The blocks of a group-KAN keep equally many of each group, since its groups are equal.

    Args:
        keep: share of the units to keep, in (0, 1]; at least one, or one of each group, is kept.

    Raises:
        ValueError: another share.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the share of units to keep must be in (0, 1], not {keep}")
    groups = config.groups if config.ffn == "group-kan" else 1
    kept = []
    for own in scores:
        by_group = own.units.view(groups, -1)
        count = max(round(keep * by_group.shape[1]), 1)
        first = torch.arange(groups, device=own.units.device)[:, None] * by_group.shape[1]
        best = by_group.argsort(dim=1, descending=True, stable=True)[:, :count] + first
        kept.append(best.flatten().sort().values.cpu())
    return kept


@torch.no_grad()
def compact(model: VisionTransformer, kept: Sequence[Tensor]) -> VisionTransformer:
    """A smaller model with the given hidden units only, in eval mode.

    Args:
        kept: numbers of the units of each block, ascending; as many of each group in a group-KAN.

    Raises:
        ValueError: numbers that are not those of units, or groups that would differ in size.
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
    """A copy to write to.

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
    """A copy whose second layers are the least-squares best for what the blocks gave before.

    Splines of a group-KAN stay; the weights behind them are fitted.

    Args:
        records: of the model before it was made smaller; pictures that it was trained on.
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
    """Adds to a layer what comes nearest to `missing` (N, out) on its inputs, in place."""
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
        least = LEAST_SCALE * scale.abs().mean().clamp_min(1e-6)
        scale.copy_(torch.where(scale.abs() < least, least, scale))
        wanted = wanted / scale[..., None]
    layer.spline_weight.copy_(wanted)


@torch.no_grad()
def remove_edges(
    model: VisionTransformer, scores: Sequence[BlockScores], keep: float
) -> VisionTransformer:
    """A copy in which the weakest edges of each layer are zero.

    The layers stay dense, so this makes nothing faster; it leaves fewer functions to look at. In
    a later training splines of removed edges stay zero, bases and weights may come back.

    Args:
        keep: share of the edges to keep, in (0, 1].

    Raises:
        ValueError: another share.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"the share of edges to keep must be in (0, 1], not {keep}")
    made = _copy(model)
    for block, own in enumerate(scores):
        for name, ranks in (("fc1", own.first), ("fc2", own.second)):
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
    """A copy whose splines are zero, so that bases and weights are left alone."""
    made = _copy(model)
    for block in range(model.config.depth):
        for name in LAYERS:
            layer = edge_layer(made, block, name)
            if isinstance(layer, KANLinear | GroupKANLinear):
                layer.spline_weight.zero_()
    return made


def refine_blocks(
    model: VisionTransformer, grid_size: int, blocks: Sequence[int] | None = None
) -> VisionTransformer:
    """A copy with finer grids in some blocks, or in all, and the functions that it had.

    They are the same to rounding if `grid_size` is a multiple of the present size, else the nearest
    (see `models.kan_grid.refine_grid`).

    Raises:
        ValueError: no such block, blocks without grids, or a size below the present one.
    """
    config = model.config
    chosen = range(config.depth) if blocks is None else blocks
    if config.ffn == "mlp":
        raise ValueError("MLP blocks have no grids to refine")
    if not set(chosen) <= set(range(config.depth)):
        raise ValueError(f"there are blocks 0 to {config.depth - 1}, not {list(chosen)}")
    made = _copy(model)
    sizes = list(config.block_grids)
    for block in chosen:
        for name in LAYERS:
            layer = edge_layer(made, block, name)
            assert isinstance(layer, KANLinear | GroupKANLinear)
            refine_grid(layer, grid_size)
        sizes[block] = grid_size
    made.config = replace(config, grid_sizes=tuple(sizes))
    return made


def removed_share(model: VisionTransformer) -> float:
    """Share of the edges in the blocks that are zero."""
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
