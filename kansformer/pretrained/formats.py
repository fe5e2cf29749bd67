"""Which format a state dict is in, by its names, and what its shapes say about the model."""

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

MAX_TOKENS = 2**14  # positions; attention among more would not fit into any memory
MAX_DEPTH = 1000
# width: heads of the published models whose heads are not 64 wide (huge, so400m, giant, gigantic)
ODD_HEADS = {1280: 16, 1152: 16, 1408: 16, 1664: 16}

HEADS = ("head.weight", "head.fc2.base_weight")  # the last layer of a linear head and of a KAN's

# names that only architectures other than ours have
UNSUPPORTED = (
    (r"mlp\.(w12|w3|fc1_[gx]|weights_(in|out))\b", "SwiGLU feed-forward blocks"),
    (r"(attn|attention)\.[qk]_norm\b", "normalised queries and keys (qk-norm)"),
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
    """Recognises the format of a state dict and converts it to our names.

    Args:
        unwrapped: what was taken off, as in `read.RawFile`.

    Raises:
        ValueError: not a ViT in a known format, or one with parts that our model has not.
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
    raise ValueError(f"not a ViT in a format that is known; it has {len(state)} tensors: {names}")


def infer_config(state: StateDict, num_heads: int | None = None) -> dict[str, Any]:
    """The fields of `ViTConfig` that shapes of a converted state dict show.

    Args:
        state: tensors under our names; feed-forward blocks are MLPs, or of any other kind, about
            which nothing is said.
        num_heads: what is known from elsewhere; else the width of a head is taken to be 64, or what
            the published models of that width have.

    Raises:
        ValueError: a tensor that is missing or of a shape that no ViT has.
    """
    for name in ("patch_embed.proj.weight", "pos_embed"):
        if name not in state:
            raise ValueError(f"it has no {name}")
    patches, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    if patches.ndim != 4 or patches.shape[2] != patches.shape[3]:
        raise ValueError(f"patches of shape {tuple(patches.shape)} are not supported, only squares")
    embed_dim, in_chans, patch_size, _ = patches.shape
    if positions.ndim != 3 or not 0 < positions.shape[1] <= MAX_TOKENS:
        raise ValueError(
            f"positions of shape {tuple(positions.shape)}; 1 to {MAX_TOKENS} tokens are supported"
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
    """Heads of a ViT of that width, 64 wide but in a few published models."""
    if embed_dim in ODD_HEADS:
        return ODD_HEADS[embed_dim]
    if embed_dim % 64:
        raise ValueError(f"it does not say how many heads share its width {embed_dim}")
    return embed_dim // 64


def _count_blocks(state: StateDict) -> int:
    blocks = {int(m[1]) for name in state if (m := re.match(r"blocks\.(\d{1,4})\.", name))}
    if not blocks or blocks != set(range(len(blocks))) or len(blocks) > MAX_DEPTH:
        raise ValueError(f"its blocks are not numbered from 0 on ({len(blocks)} found)")
    return len(blocks)


def _grid(positions: int, prefix: int) -> tuple[int, bool]:
    """Side of a square of patches, and whether the tokens before them are without positions."""
    for count, no_embed_class in ((positions - prefix, False), (positions, prefix > 0)):
        side = math.isqrt(max(count, 0))
        if side and side * side == count:
            return side, no_embed_class
    raise ValueError(f"{positions} positions with {prefix} other tokens are no square of patches")


def _ratio(hidden: int, embed_dim: int) -> float:
    """A factor that gives exactly `hidden` when multiplied and rounded down."""
    ratio = hidden / embed_dim
    return ratio if int(embed_dim * ratio) == hidden else math.nextafter(ratio, math.inf)
