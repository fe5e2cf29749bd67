"""Resizes position and patch embeddings for other picture sizes, with timm's functions."""

import math

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from kansformer.pretrained.conversion import StateDict
from kansformer.words import number
from models.vit_model import ViTConfig

# Values of an embedding: 87,000 patches of width 768. More is a mistake, or a hostile file.
MOST_VALUES = 2**26


@torch.no_grad()
def resize_state(
    state: StateDict, config: ViTConfig, resampling: tuple[str, bool]
) -> tuple[StateDict, dict[str, str]]:
    """A state dict for the picture size, patch size and channels of the config.

    Args:
        state: tensors under our names.
        resampling: interpolation, and whether it is antialiased.

    Returns:
        The new state dict, and for each tensor that changed, what was done to it.

    Raises:
        ValueError: channels that timm has no rule for, positions for other tokens, or an embedding
            of more than MOST_VALUES.
    """
    new, changes = dict(state), {}
    interpolation, antialias = resampling
    if "patch_embed.proj.weight" in state:  # a convolutional stem stays as it is
        patches, steps = _resize_patches(state["patch_embed.proj.weight"], config, resampling)
        if steps:
            new["patch_embed.proj.weight"] = patches
            changes["patch_embed.proj.weight"] = ", ".join(steps)

    positions = state["pos_embed"]
    prefix = 0 if config.no_embed_class else config.prefix_tokens
    old_side = math.isqrt(max(positions.shape[1] - prefix, 0))
    if old_side**2 != positions.shape[1] - prefix:
        raise ValueError(
            f"{positions.shape[1]} positions do not fit {prefix} tokens and a square of patches"
        )
    side = config.img_size // config.patch_size
    if side != old_side:
        _check_size(prefix + side**2, positions.shape[2])
        new["pos_embed"] = resample_abs_pos_embed(
            positions, [side, side], [old_side, old_side], prefix, interpolation, antialias
        )
        changes["pos_embed"] = f"{old_side}x{old_side} to {side}x{side} patches"
    return new, changes


def _resize_patches(
    patches: Tensor, config: ViTConfig, resampling: tuple[str, bool]
) -> tuple[Tensor, list[str]]:
    """The weights of the patch embedding, and what was done to them."""
    steps = []
    dim, channels, _, side = patches.shape
    if (channels, side) != (config.in_chans, config.patch_size):
        _check_size(dim, config.in_chans, config.patch_size**2)
    if channels != config.in_chans:
        patches = _adapt_channels(patches, config.in_chans)
        steps.append(f"{channels} to {number(config.in_chans, 'channel')}")
    if side != config.patch_size:
        size = [config.patch_size, config.patch_size]
        patches = resample_patch_embed(patches, size, *resampling)
        steps.append(f"patches of {side} to {config.patch_size} pixels")
    return patches, steps


def _check_size(*shape: int) -> None:
    if math.prod(shape) > MOST_VALUES:
        raise ValueError(f"an embedding of {' x '.join(map(str, shape))} values is too large")


def _adapt_channels(patches: Tensor, in_chans: int) -> Tensor:
    """timm's rule for another number of channels: their sum for one, repeated for more."""
    from timm.models import adapt_input_conv  # imports all of timm's models

    if patches.shape[1] != 3:
        raise ValueError(
            f"patch embeddings of {number(patches.shape[1], 'channel')} cannot be adapted to"
            f" {in_chans}, only those of 3"
        )
    return adapt_input_conv(in_chans, patches)
