"""Files with timm's names: timm, DeiT, DINO, DINOv2, MAE, and ViTs with KAN blocks."""

import re
from typing import Any

from torch import Tensor

from kansformer.pretrained.conversion import Conversion, Rules, StateDict

# crop_pct and interpolation as in the evaluation of each project
HALF: dict[str, Any] = {"statistics": "half", "crop_pct": 0.9, "interpolation": "bicubic"}
IMAGENET: dict[str, Any] = {**HALF, "statistics": "imagenet"}
RESIZE_256: dict[str, Any] = {**IMAGENET, "crop_pct": 0.875}  # resize to 256 pixels, crop to 224

_BLOCK = r"blocks\.(?:\d+\.)?(\d+)\."  # DINOv2's blocks may be in chunks: blocks.CHUNK.N
TIMM: Rules = (
    (r"(cls_token|dist_token|reg_token|pos_embed)", r"\1"),
    (r"(patch_embed\.proj\.(?:weight|bias))", r"\1"),
    (_BLOCK + r"((?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias)|ls[12]\.gamma)",
     r"blocks.\1.\2"),
    (_BLOCK + r"gamma_([12])", r"blocks.\1.ls\2.gamma"),  # DeiT III's name
    (r"((?:norm|fc_norm|head|head_dist|pre_logits\.fc)\.(?:weight|bias))", r"\1"),
)  # fmt: skip
DINO_HEADS = r"(head\.(mlp|last_layer)|(dino|ibot)_head|linear_head|projection_head|predictor)\b"
MAE_DECODER = r"decoder_"


def convert_timm(state: StateDict, unwrapped: tuple[str, ...] = ()) -> Conversion:
    """Converts files with timm's names, apart from those of the functions below.

    The project that a file comes from decides the preprocessing.

    Args:
        unwrapped: the dictionary keys and name prefixes that were stripped. A teacher shows a DINO
            file; the single key `model` is the only mark of DeiT.
    """
    out = Conversion("timm ViT", dict(state))
    out.rename(TIMM)
    if "dist_token" in out.state:
        out.format, out.preprocessing = "DeiT, distilled", IMAGENET
    elif is_dino(state, unwrapped):
        out.skip(DINO_HEADS, "head of the self-supervised pretraining")
        out.format, out.preprocessing = "DINO", RESIZE_256
    elif "fc_norm.weight" in out.state and "cls_token" in out.state:
        out.format, out.preprocessing = "MAE, fine-tuned (mean pooling)", RESIZE_256
    elif "blocks.0.ls1.gamma" in out.state and "fc_norm.weight" not in out.state:
        headless = "head.weight" not in out.state
        out.format = "DINOv2, timm's names" if headless else "DeiT III, or a DINOv2 with a head"
        out.preprocessing = RESIZE_256 if headless else IMAGENET
    elif unwrapped == ("model",):
        out.format, out.preprocessing = "DeiT", IMAGENET
        out.assumption = (
            "assuming DeiT, which is published under the key model, with ImageNet's mean and std;"
            " other models may need preprocessing half"
        )
    else:
        out.preprocessing = HALF
        out.assumption = (
            "timm's files do not contain mean and std; assuming 0.5, as for most of its ViTs (DeiT"
            " and DINO need preprocessing imagenet)"
        )
    return out


def is_dino(state: StateDict, unwrapped: tuple[str, ...]) -> bool:
    """Whether the file comes from DINO: it has a teacher, or a projection head beside the ViT."""
    teacher = any("teacher" in part for part in unwrapped)
    return teacher or any(re.match(DINO_HEADS, name) for name in state)


def convert_dinov2(state: StateDict) -> Conversion:
    """Converts DINOv2 as Facebook publishes it: timm's names except for registers and mask token.

    With registers, there is a position for the class token but none for the registers, which stand
    between it and the patches.
    """
    out = Conversion("DINOv2", dict(state), preprocessing=RESIZE_256)
    out.skip("mask_token", "used only in masked pretraining")
    out.skip(DINO_HEADS, "head of the self-supervised pretraining, or on several tokens")
    out.rename((("register_tokens", "reg_token"), *TIMM))
    if "reg_token" in out.state and {"pos_embed", "cls_token"} <= out.state.keys():
        out.fold_class_position()
    return out


def convert_mae(state: StateDict) -> Conversion:
    """Converts MAE's pretraining file, with or without its decoder, to a ViT without a head."""
    out = Conversion("MAE, pretrained encoder", dict(state), preprocessing=RESIZE_256)
    out.skip(MAE_DECODER, "decoder of the masked pretraining")
    out.skip("mask_token", "used only in masked pretraining")
    out.rename(TIMM)
    return out


def is_mae(state: StateDict) -> bool:
    """Whether this is an MAE encoder: it has a decoder beside it, or MAE's fixed positions.

    Those are sines and cosines, with exact zeros for the class token, in a file without a head.
    """
    if any(name.startswith(MAE_DECODER) for name in state):
        return True
    positions = state.get("pos_embed")
    return (
        positions is not None
        and positions.ndim == 3
        and positions.shape[1] > 1
        and "head.weight" not in state
        and not positions[:, 0].any()
        and bool(positions[:, 1:].abs().max() <= 1)
    )


KAN_VIT: Rules = (
    (r"blocks\.(\d+)\.kan\.layers\.0\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.kan\.layers\.1\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"head\.layers\.0\.(\w+)", r"head.fc1.\1"),
    (r"head\.layers\.1\.(\w+)", r"head.fc2.\1"),
    *TIMM,
)


def convert_kan_vit(state: StateDict) -> Conversion:
    """Converts a ViT with efficient-kan's `KAN([dim, hidden, dim])` as blocks and head.

    This is the format of vision_kansformer. The grids are those of the file; grid size and spline
    order follow from the shapes.
    """
    out = Conversion("ViT with efficient-kan blocks", dict(state))
    out.preprocessing = {**RESIZE_256, "interpolation": "bilinear"}
    out.rename(KAN_VIT)
    weight, grid = (out.state.get(f"blocks.0.mlp.fc1.{name}") for name in ("spline_weight", "grid"))
    if weight is None or grid is None:
        raise ValueError("blocks.0.kan has no spline_weight or no grid")
    hidden, grid_size, order, grid_range = _kan_sizes(weight, grid)
    out.config = {
        "ffn": "kan", "kan_hidden": hidden, "kan_norm": False, "base_activation": "silu",
        "grid_size": grid_size, "spline_order": order, "grid_range": grid_range,
    }  # fmt: skip
    if "head.fc1.spline_weight" in out.state:
        out.config |= {"head": "kan", "head_hidden": len(out.state["head.fc1.spline_weight"])}
    return out


def _kan_sizes(spline_weight: Tensor, grid: Tensor) -> tuple[int, int, int, tuple[float, float]]:
    """Hidden width, grid size, order, range; weights are (out, in, G+k), grids (in, G+2k+1)."""
    order = grid.shape[-1] - spline_weight.shape[-1] - 1
    grid_size = spline_weight.shape[-1] - order
    if order < 0 or grid_size < 1:
        raise ValueError("shapes of blocks.0.kan's weights and grid contradict each other")
    knots = grid[0]
    return len(spline_weight), grid_size, order, (float(knots[order]), float(knots[-1 - order]))
