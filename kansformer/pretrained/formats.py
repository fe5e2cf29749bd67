"""Recognizes the format of a state dict by its names, and infers the model's config from shapes."""

import math
import re
from typing import Any

from kansformer.pretrained.conversion import Conversion, StateDict
from kansformer.pretrained.hugging_face import convert_hf_dinov2, convert_hf_vit
from kansformer.pretrained.jax_names import convert_jax, find_prefix
from kansformer.pretrained.timm_names import (
    convert_dinov2,
    convert_kan_vit,
    convert_mae,
    convert_timm,
    is_mae,
)
from kansformer.pretrained.torchvision_names import convert_torchvision
from kansformer.words import number

MAX_TOKENS = 2**14  # attention among more tokens would not fit into memory
MAX_DEPTH = 1000
# number of heads, by width, of published models whose heads are not 64 wide (huge, so400m, giant,
# gigantic)
ODD_HEADS = {1280: 16, 1152: 16, 1408: 16, 1664: 16}

HEADS = ("head.weight", "head.fc2.base_weight")  # the last layer of a linear head, of a KAN head

# names that occur only in unsupported architectures
UNSUPPORTED = (
    (r"mlp\.(w12|w3|fc1_[gx]|weights_(in|out))\b", "SwiGLU feed-forward blocks"),
    (r"(attn|attention)\.[qk]_norm\b", "normalized queries and keys (qk-norm)"),
    (r"rel(ative)?_pos", "relative positions"),
    (r"\b(rope|freqs|rotary)", "rotary positions (RoPE)"),
    (r"^(patch_embed|embed)\.(backbone|conv|stem|proj\.\d)|conv_stem|^conv_proj\.\d|conv_root",
     "a convolutional stem"),
    (r"^norm_pre\b|^ln_pre\b|^visual\.", "CLIP's norm before the blocks"),
    (r"attn_pool|MAPHead", "attention pooling"),
    (r"^blocks\.\d+\.(attns|ffns)\.", "parallel blocks"),
    (r"attn\.[qkv]_(proj|bias)\b", "BEiT's or EVA's attention"),
    (r"Transformer/encoderblock/", "blocks stacked in one array"),
)  # fmt: skip


def convert(state: StateDict, unwrapped: tuple[str, ...] = ()) -> Conversion:
    """Recognizes the format of a state dict and converts it to our names.

    Args:
        unwrapped: the dictionary keys and name prefixes that were stripped from the file.

    Raises:
        ValueError: not a ViT in a known format, or one with parts that our model does not have.
    """
    _refuse_unsupported(state)
    if find_prefix(state) is not None:
        return convert_jax(state)
    if "conv_proj.weight" in state and "class_token" in state:
        return convert_torchvision(state)
    if "embeddings.patch_embeddings.projection.weight" in state:
        dinov2 = any("layer_scale1" in name for name in state)
        return convert_hf_dinov2(state) if dinov2 else convert_hf_vit(state)
    if "patch_embed.proj.weight" in state:
        if any(".kan.layers." in name for name in state):
            return convert_kan_vit(state)
        if is_mae(state):
            return convert_mae(state)
        chunked = any(re.match(r"blocks\.\d+\.\d+\.", name) for name in state)
        if chunked or {"mask_token", "register_tokens"} & state.keys():
            return convert_dinov2(state)
        return convert_timm(state, unwrapped)
    names = ", ".join(sorted(state)[:3])
    raise ValueError(f"not a ViT in a known format; it has {len(state)} tensors: {names}")


def infer_config(state: StateDict, num_heads: int | None = None) -> dict[str, Any]:
    """The fields of `ViTConfig` that follow from the shapes of a converted state dict.

    Args:
        state: tensors under our names. Only MLP blocks determine the fields of feed-forward blocks.
        num_heads: the number of heads, if known; otherwise heads are assumed to be 64 wide, or as
            in the published models of that width.

    Raises:
        ValueError: a missing tensor, or a shape that no ViT has.
    """
    for name in ("patch_embed.proj.weight", "pos_embed"):
        if name not in state:
            raise ValueError(f"it has no {name}")
    patches, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    if patches.ndim != 4 or patches.shape[2] != patches.shape[3]:
        raise ValueError(
            f"only square patches are supported, not a patch embedding of shape"
            f" {tuple(patches.shape)}"
        )
    embed_dim, in_chans, patch_size, _ = patches.shape
    if positions.ndim != 3 or not 0 < positions.shape[1] <= MAX_TOKENS:
        raise ValueError(
            f"positions of shape {tuple(positions.shape)}; only 1 to {MAX_TOKENS} tokens are"
            " supported"
        )
    config: dict[str, Any] = {
        "embed_dim": embed_dim,
        "in_chans": in_chans,
        "patch_size": patch_size,
        "num_heads": num_heads or _usual_heads(embed_dim),
        "depth": _count_blocks(state),
        "num_classes": next((len(state[name]) for name in HEADS if name in state), 0),
        "class_token": "cls_token" in state,
        "distilled": "dist_token" in state,
        "reg_tokens": state["reg_token"].shape[1] if "reg_token" in state else 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "fc_norm": "fc_norm.weight" in state,
        "pre_logits": "pre_logits.fc.weight" in state,
    }
    config["pool"] = "avg" if config["fc_norm"] or not config["class_token"] else "token"
    prefix = config["class_token"] + config["distilled"] + config["reg_tokens"]
    side, config["no_embed_class"] = _grid(positions.shape[1], prefix)
    config["img_size"] = side * patch_size
    hidden = state.get("blocks.0.mlp.fc1.weight")
    if hidden is not None:
        if state["blocks.0.mlp.fc2.weight"].shape[-1] != len(hidden):
            raise ValueError("not supported: SwiGLU feed-forward blocks")
        config["mlp_ratio"] = _ratio(len(hidden), embed_dim)
    return config


def _refuse_unsupported(state: StateDict) -> None:
    for pattern, what in UNSUPPORTED:
        name = next((name for name in state if re.search(pattern, name)), None)
        if name is not None:
            raise ValueError(f"not supported: {what}, {name[:60]}")


def _usual_heads(embed_dim: int) -> int:
    """The usual number of heads for a width: one per 64, except in a few published models."""
    if embed_dim in ODD_HEADS:
        return ODD_HEADS[embed_dim]
    if embed_dim % 64:
        raise ValueError(f"unknown number of attention heads for its width {embed_dim}")
    return embed_dim // 64


def _count_blocks(state: StateDict) -> int:
    blocks = {int(m[1]) for name in state if (m := re.match(r"blocks\.(\d{1,4})\.", name))}
    if not blocks or blocks != set(range(len(blocks))) or len(blocks) > MAX_DEPTH:
        raise ValueError(f"its {number(len(blocks), 'block')} must be numbered from 0 without gaps")
    return len(blocks)


def _grid(positions: int, prefix: int) -> tuple[int, bool]:
    """Side of the square of patches, and whether the tokens before them have no positions."""
    for count, no_embed_class in ((positions - prefix, False), (positions, prefix > 0)):
        side = math.isqrt(max(count, 0))
        if side and side * side == count:
            return side, no_embed_class
    raise ValueError(
        f"{positions} positions do not fit a square of patches and {number(prefix, 'other token')}"
    )


def _ratio(hidden: int, embed_dim: int) -> float:
    """A factor that gives exactly `hidden` when multiplied and rounded down."""
    ratio = hidden / embed_dim
    return ratio if int(embed_dim * ratio) == hidden else math.nextafter(ratio, math.inf)
