"""Google's JAX checkpoints (`.npz`): the original ViT, AugReg and big_vision.

Their kernels have other shapes than torch's: linear layers (in, out), attention (in, heads,
head width) and (heads, head width, out), patch embedding (height, width, in, out).
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from kansformer.pretrained.conversion import Conversion, StateDict
from kansformer.pretrained.timm_names import HALF

PREFIXES = ("opt/target/", "params/img/", "params/", "")
QKV = ("query", "key", "value")


def find_prefix(state: StateDict) -> str | None:
    """The prefix of all names of the model, or None if the file is not in this format."""
    return next((p for p in PREFIXES if f"{p}embedding/kernel" in state), None)


def convert_jax(state: StateDict) -> Conversion:
    """Converts a ViT of google-research/vision_transformer or of big_vision."""
    prefix = find_prefix(state)
    assert prefix is not None, "the caller has recognized the format"
    out = Conversion("Google's JAX ViT", dict(state), preprocessing=HALF)
    out.resampling = ("bilinear", False)  # as timm's loader of these files resamples
    out.skip(rf"(?!{re.escape(prefix)})", "not part of the image model, such as optimizer state")
    big_vision = f"{prefix}pos_embedding" in state
    posembed = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    _take(
        out, "patch_embed.proj.weight", f"{prefix}embedding/kernel", lambda w: w.permute(3, 2, 0, 1)
    )
    _take(out, "patch_embed.proj.bias", f"{prefix}embedding/bias")
    _take(out, "cls_token", f"{prefix}cls")
    _take(out, "pos_embed", prefix + posembed)
    _take_norm(out, "norm", f"{prefix}Transformer/encoder_norm")
    _take_linear(out, "pre_logits.fc", f"{prefix}pre_logits")
    _take_linear(out, "head", f"{prefix}head")
    for name in list(out.left):
        block = re.match(r"(.*Transformer/encoderblock_(\d+))/LayerNorm_0/bias", name)
        if block:
            _take_block(out, f"blocks.{block[2]}", block[1], big_vision)
    return out


def _take_block(out: Conversion, ours: str, theirs: str, big_vision: bool) -> None:
    """Converts one block; big_vision numbers its parts differently."""
    attention, mlp, norm2 = (0, 0, 1) if big_vision else (1, 3, 2)
    _take_norm(out, f"{ours}.norm1", f"{theirs}/LayerNorm_0")
    _take_norm(out, f"{ours}.norm2", f"{theirs}/LayerNorm_{norm2}")
    heads = f"{theirs}/MultiHeadDotProductAttention_{attention}"
    query = out.left.get(f"{heads}/query/kernel")
    if query is not None and query.ndim == 3:
        out.config["num_heads"] = query.shape[1]
    out.make(
        f"{ours}.attn.qkv.weight",
        tuple(f"{heads}/{part}/kernel" for part in QKV),
        "joined and transposed",
        lambda *kernels: torch.cat([kernel.flatten(1).T for kernel in kernels]),
    )
    out.make(
        f"{ours}.attn.qkv.bias",
        tuple(f"{heads}/{part}/bias" for part in QKV),
        "joined",
        lambda *biases: torch.cat([bias.flatten() for bias in biases]),
    )
    _take(out, f"{ours}.attn.proj.weight", f"{heads}/out/kernel", lambda w: w.flatten(0, 1).T)
    _take(out, f"{ours}.attn.proj.bias", f"{heads}/out/bias")
    for number in (0, 1):
        _take_linear(out, f"{ours}.mlp.fc{number + 1}", f"{theirs}/MlpBlock_{mlp}/Dense_{number}")


def _take_linear(out: Conversion, ours: str, theirs: str) -> None:
    _take(out, f"{ours}.weight", f"{theirs}/kernel", lambda kernel: kernel.T)
    _take(out, f"{ours}.bias", f"{theirs}/bias")


def _take_norm(out: Conversion, ours: str, theirs: str) -> None:
    _take(out, f"{ours}.weight", f"{theirs}/scale")
    _take(out, f"{ours}.bias", f"{theirs}/bias")


def _take(
    out: Conversion, ours: str, theirs: str, transpose: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Converts one tensor if the file has it; the caller detects missing tensors later."""
    if theirs in out.left:
        how = "transposed" if transpose else "renamed"
        out.make(ours, (theirs,), how, transpose or (lambda w: w))
