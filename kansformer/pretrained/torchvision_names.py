"""torchvision's VisionTransformer (vit_b_16 and its relatives)."""

from kansformer.pretrained.conversion import Conversion, Rules, StateDict
from kansformer.pretrained.timm_names import RESIZE_256

_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION: Rules = (
    (r"class_token", "cls_token"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (_LAYER + r"ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (_LAYER + r"self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (_LAYER + r"self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),  # linear_: before 0.13
    (_LAYER + r"mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
    (r"heads\.pre_logits\.(\w+)", r"pre_logits.fc.\1"),
    (r"heads\.head\.(\w+)", r"head.\1"),
)


def convert_torchvision(state: StateDict) -> Conversion:
    """Converts `torchvision.models.vit_b_16` and the like, with or without a head."""
    out = Conversion("torchvision ViT", dict(state))
    out.preprocessing = {**RESIZE_256, "interpolation": "bilinear"}
    out.rename(TORCHVISION)
    return out
