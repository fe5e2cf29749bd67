"""Hugging Face's ViT, DeiT, ViT-MAE and DINOv2, with the names of transformers 4 and 5.

Saved files keep the names of release 4; a `state_dict()` has the names of the release that made it.
"""

from typing import Any

from kansformer.pretrained.conversion import Conversion, Rules, StateDict, join_qkv
from kansformer.pretrained.timm_names import IMAGENET, RESIZE_256

EMBEDDINGS: Rules = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"layernorm\.(\w+)", r"norm.\1"),
)
_LAYER = r"(?:encoder\.)?layers?\.(\d+)\."
LAYERS: Rules = (
    (_LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"(?:layernorm_before|norm1)\.(\w+)", r"blocks.\1.norm1.\2"),
    (_LAYER + r"(?:layernorm_after|norm2)\.(\w+)", r"blocks.\1.norm2.\2"),
    (_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"(?:output\.dense|mlp\.fc2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
)
SQUASHED: dict[str, Any] = {"statistics": "half", "crop_pct": 1.0, "interpolation": "bilinear"}


def convert_hf_vit(state: StateDict) -> Conversion:
    """Converts `ViTModel`, `ViTForImageClassification`, and the same of DeiT and ViT-MAE.

    The pooler of `ViTModel` is skipped, because Hugging Face's classifiers do not use it.
    """
    out = Conversion("Hugging Face ViT", dict(state), config={"norm_eps": 1e-12})
    out.preprocessing = SQUASHED
    if any(name.startswith("decoder.") for name in state):
        out.format, out.preprocessing = "Hugging Face ViT-MAE, pretrained encoder", IMAGENET
        out.skip(r"decoder\.", "decoder of the masked pretraining")
    elif "embeddings.distillation_token" in state:
        out.format, out.preprocessing = "Hugging Face DeiT, distilled", IMAGENET
    out.skip(r"embeddings\.mask_token", "used only in masked pretraining")
    out.skip(r"pooler\.", "pooler, which classifiers do not use")
    _rename(out)
    if "dist_token" in out.state:  # a pair is named cls_classifier and distillation_classifier
        out.skip(r"classifier\.", "a single classifier, where a distilled model has two")
    out.rename((
        (r"(?:cls_)?classifier\.(\w+)", r"head.\1"),
        (r"distillation_classifier\.(\w+)", r"head_dist.\1"),
    ))  # fmt: skip
    return out


def convert_hf_dinov2(state: StateDict) -> Conversion:
    """Converts `Dinov2Model` and `Dinov2WithRegistersModel`, with or without a classifier.

    The input of that classifier is the class token joined with the mean of the patches, twice as
    wide as the input of a ViT's head, so it is skipped.
    """
    out = Conversion("Hugging Face DINOv2", dict(state), preprocessing=RESIZE_256)
    out.skip(r"embeddings\.mask_token", "used only in masked pretraining")
    out.skip(r"classifier\.", "a classifier on the class token joined with the mean of the patches")
    _rename(out)
    if "reg_token" in out.state and {"pos_embed", "cls_token"} <= out.state.keys():
        out.format += " with registers"
        out.fold_class_position()
    return out


def _rename(out: Conversion) -> None:
    join_qkv(out, _LAYER, [f"attention.attention.{part}" for part in ("query", "key", "value")])
    join_qkv(out, _LAYER, [f"attention.{part}_proj" for part in "qkv"])
    out.rename(EMBEDDINGS + LAYERS)
