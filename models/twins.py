"""Twins: a KAN model and an MLP model that differ in their feed-forward blocks and in no size.

A comparison says something about the KAN only if both have equally many parameters, or operations.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .vit_model import VisionTransformer, ViTConfig

TOLERANCE = 0.02  # by how much twins may differ


def count_parameters(model: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_flops(model: VisionTransformer) -> int:
    """Floating point operations of the matrix products for one picture, two per multiply-add.

    Those of activations and splines, a few per value, are left out, for MLP and KAN alike.
    """
    config = model.config
    like = next(model.parameters())
    picture = like.new_zeros(1, config.in_chans, config.img_size, config.img_size)
    was_training = model.training
    # the counter does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(picture)
    model.train(was_training)
    return counter.get_total_flops()


COUNTS: dict[str, Callable[[VisionTransformer], int]] = {
    "params": count_parameters,
    "flops": count_flops,
}


def mlp_twin(config: ViTConfig) -> ViTConfig:
    """The same model with MLP blocks, of the width that they have before any surgery."""
    return replace(config, ffn="mlp", hidden_widths=None, grid_sizes=None)


@cache
def count(config: ViTConfig, by: str) -> int:
    """A model's size: "params" or "flops" (see `count_flops`), without making its weights."""
    with torch.device("meta"):
        return COUNTS[by](VisionTransformer(config))


def matched(config: ViTConfig, by: str, target: int | None = None) -> ViTConfig:
    """The model with the hidden width at which its blocks make it as large as its MLP twin.

    Args:
        by: "params" or "flops".
        target: the size to reach instead of the twin's.

    Raises:
        ValueError: no width comes within TOLERANCE of it.
    """
    target = count(mlp_twin(config), by) if target is None else target
    step = config.groups if config.ffn == "group-kan" else 1
    one, two = (count(with_hidden(config, width * step), by) for width in (1, 2))
    width = max(round((target - one) / (two - one)) + 1, 1) * step  # sizes grow linearly
    match = with_hidden(config, width)
    size = count(match, by)
    if abs(size - target) > TOLERANCE * target:
        raise ValueError(
            f"no width of {config.ffn} blocks gives {target:,} {by}; the nearest has {size:,}"
        )
    return match


def with_hidden(config: ViTConfig, hidden: int) -> ViTConfig:
    """The model with another hidden width of its feed-forward blocks."""
    config = replace(config, hidden_widths=None)
    if config.ffn == "kan":
        return replace(config, kan_hidden=hidden)
    return replace(config, mlp_ratio=hidden / config.embed_dim)
