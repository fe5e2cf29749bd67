"""KAN blocks that start as the MLP blocks of a pretrained model.

An MLP, fc2 · gelu(fc1 · x), is a KAN block whose two layers have the identity and GELU as base
functions and whose splines are zero. So the model's outputs are unchanged at the start. The
gradient with respect to a spline's coefficients does not depend on their values, so training then
changes the splines.
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


def warm_settings(ffn: str, old: ViTConfig, requested: dict[str, Any]) -> dict[str, Any]:
    """Fields of `ViTConfig` with which blocks of kind `ffn` can start from MLP blocks.

    A narrow KAN, whose width differs from the MLP's, cannot start as the same function. By default
    its width is chosen so that it has as many parameters as the MLP.
    """
    if ffn == "kan" and requested.get("kan_hidden") == "full":
        return {**LIKE_MLP, **requested}
    settings = {**FFN_SETTINGS[ffn], **requested}
    if ffn == "kan" and "kan_hidden" not in requested:
        settings["kan_hidden"] = matched(replace(old, **settings), "params").kan_hidden
    return settings


def is_narrow(config: ViTConfig) -> bool:
    """Whether the blocks are KANs whose width differs from an MLP's."""
    return config.ffn == "kan" and config.kan_hidden != "full"


def mlp_to_ffn(state: StateDict, config: ViTConfig) -> StateDict:
    """Turns the MLPs `blocks.N.mlp.fc{1,2}` of a state dict into blocks of kind `config.ffn`.

    Raises:
        ValueError: with these settings the blocks cannot compute what the MLP does.
    """
    if not starts_as_mlp(config):
        needed = ", ".join(f"{name}={value}" for name, value in LIKE_MLP.items())
        raise ValueError(f"blocks that start as an MLP need {needed}")
    if config.ffn == "group-kan":
        return state
    weight = re.compile(r"(blocks\.\d+\.mlp\.fc[12])\.weight")
    return {weight.sub(r"\1.base_weight", name): value for name, value in state.items()}


@torch.no_grad()
def zero_splines(model: VisionTransformer) -> None:
    """Sets every spline in the blocks to zero, but not its scale: its gradient is not zero."""
    for module in model.blocks.modules():
        if isinstance(module, KANLinear | GroupKANLinear):
            nn.init.zeros_(module.spline_weight)
