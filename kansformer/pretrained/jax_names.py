"""Google's JAX checkpoints (`.npz`) of the first ViT, AugReg and big_vision.

Kernels of linear layers are (in, out) there, those of attention (in, heads, width of a head) and
(heads, width, out), those of the patches (height, width, in, out).
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
    """What stands before all names of the model, or None if this is no such file."""
    return next((p for p in PREFIXES if f"{p}embedding/kernel" in state), None)


def convert_jax(state: StateDict) -> Conversion:
    """A ViT of google-research/vision_transformer or of big_vision, its blocks one by one."""
    prefix = find_prefix(state)
    assert prefix is not None, "the caller has recognised the format"
    out = Conversion("Google's JAX ViT", dict(state), preprocessing=HALF)
    out.resampling = ("bilinear", False)  # what timm's loader of these files does
    out.skip(rf"(?!{re.escape(prefix)})", "not of the image model, such as the optimizer's")
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
    """One block, whose parts have other numbers in big_vision."""
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
    out: Conversion, ours: str, theirs: str, turn: Callable[[Tensor], Tensor] | None = None
) -> None:
    """One tensor, if the file has it; a model that needs it is refused without it later."""
    if theirs in out.left:
        out.make(ours, (theirs,), "transposed" if turn else "renamed", turn or (lambda w: w))
