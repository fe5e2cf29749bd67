"""KAN blocks that start as the MLP blocks of a pretrained model.

An MLP, fc2 · gelu(fc1 · x), is a KAN block whose two layers have the identity and GELU as bases and
whose splines are zero. So the model computes the very same at the start; and since the gradient in
a spline's coefficients does not depend on them, training then bends the splines.
"""

import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kansformer.pretrained.conversion import StateDict
from models.kan import GroupKANLinear, KANLinear
from models.twins import matched
from models.vit_model import FFN_SETTINGS, LIKE_MLP, VisionTransformer, ViTConfig, starts_as_mlp


def warm_settings(ffn: str, old: ViTConfig, asked: dict[str, Any]) -> dict[str, Any]:
    """Fields of `ViTConfig` that blocks of another kind need, to start from MLP blocks.

    A narrow KAN, of other width than the MLP, cannot start as it; where no width is asked for, it
    is given as many parameters.
    """
    if ffn == "kan" and asked.get("kan_hidden") == "full":
        return {**LIKE_MLP, **asked}
    settings = {**FFN_SETTINGS[ffn], **asked}
    if ffn == "kan" and "kan_hidden" not in asked:
        settings["kan_hidden"] = matched(replace(old, **settings), "params").kan_hidden
    return settings


def is_narrow(config: ViTConfig) -> bool:
    """Whether the blocks are KANs that have another width than an MLP's."""
    return config.ffn == "kan" and config.kan_hidden != "full"


def mlp_to_ffn(state: StateDict, config: ViTConfig) -> StateDict:
    """Turns `blocks.N.mlp.fc{1,2}` of a state dict into the blocks that `config.ffn` names.

    Raises:
        ValueError: a setting with which the blocks cannot compute what the MLP does.
    """
    if not starts_as_mlp(config):
        needed = ", ".join(f"{name}={value}" for name, value in LIKE_MLP.items())
        raise ValueError(f"blocks that start as an MLP have {needed}")
    if config.ffn == "group-kan":
        return state
    weight = re.compile(r"(blocks\.\d+\.mlp\.fc[12])\.weight")
    return {weight.sub(r"\1.base_weight", name): value for name, value in state.items()}


@torch.no_grad()
def zero_splines(model: VisionTransformer) -> None:
    """Sets every spline in the blocks to zero; its scale stays, so that its gradient is not."""
    for module in model.blocks.modules():
        if isinstance(module, KANLinear | GroupKANLinear):
            nn.init.zeros_(module.spline_weight)
