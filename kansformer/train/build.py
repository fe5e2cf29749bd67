"""The model of a run: fresh or from weights, and which of its layers train."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kansformer.data import PictureData, Preprocessing
from kansformer.errors import UserError
from kansformer.evaluate import evaluate
from kansformer.pretrained import LoadReport, distill, load_for_classes
from kansformer.train.config import TrainConfig
from models.twins import count, matched, mlp_twin
from models.vit_model import VisionTransformer, ViTConfig, model_config


def build_model(
    config: TrainConfig, data: PictureData
) -> tuple[VisionTransformer, Preprocessing, LoadReport | None]:
    """The model of the settings, fresh or started from weights, and the report on those."""
    overrides = config.model_overrides()
    if config.weights is not None:
        if config.match != "none":
            raise UserError("--match is for models from scratch; with --weights, --kan-hidden")
        model, report = load_for_classes(
            config.weights, data.class_names, preprocessing=config.preprocessing, **overrides
        )
        return model, report.preprocessing, report
    overrides = {"in_chans": data.in_chans, **overrides}
    try:
        settings = model_config(config.model, num_classes=len(data.class_names), **overrides)
        if config.match != "none":
            settings = matched(settings, config.match)
    except ValueError as error:
        raise UserError(f"--model {config.model}: {error}") from None
    preprocessing = Preprocessing(settings.img_size, settings.in_chans)
    if config.preprocessing is not None:
        preprocessing = preprocessing.with_statistics(config.preprocessing)
    return VisionTransformer(settings), preprocessing, None


def sizes_of_twin(config: TrainConfig, settings: ViTConfig) -> dict[str, int]:
    """Parameters and FLOPs of the same model with MLP blocks."""
    twin = mlp_twin(settings)
    if config.match != "none":  # the model may have been given another width, its twin was not
        twin = replace(twin, mlp_ratio=config.mlp_ratio or model_config(config.model).mlp_ratio)
    return {"parameters": count(twin, "params"), "flops_per_image": count(twin, "flops")}


def fit_to_mlps(
    config: TrainConfig,
    data: PictureData,
    model: VisionTransformer,
    loaded: LoadReport,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
) -> dict[str, Any]:
    """Fits the model's narrow KAN blocks to the MLPs that the weights file has in their place.

    Returns:
        R² by block and, where the file's head is kept, the validation accuracy right after the fit
        beside that of the model with its MLPs; with a line of "text".
    """
    device = model.pos_embed.device
    shape = {name: getattr(model.config, name) for name in ("img_size", "patch_size", "num_heads",
                                                             "in_chans")}  # fmt: skip
    teacher, _ = load_for_classes(str(config.weights), data.class_names, **shape)
    teacher.to(device)
    fit = distill(
        teacher,
        model,
        (images for images, _ in train_loader),
        (images for images, _ in val_loader),
        config.distill_steps,
    )
    found: dict[str, Any] = {**fit.to_dict(), "text": str(fit)}
    if not any(name.startswith("head.") for name in loaded.fresh):
        found["val_acc1"] = evaluate(model, val_loader, device)["acc1"]
        found["val_acc1_of_mlps"] = evaluate(teacher, val_loader, device)["acc1"]
        found["text"] += (
            f"; validation accuracy {found['val_acc1']:.2f} %, with the MLPs"
            f" {found['val_acc1_of_mlps']:.2f} %"
        )
    return found


def freeze_layers(model: VisionTransformer, thawed: int = 0) -> list[str]:
    """Leaves only what stands behind the blocks trainable, and the last `thawed` blocks.

    With all blocks thawed, the embedding trains too. Returns the names of the frozen parameters.
    """
    first = model.config.depth - thawed
    frozen = []
    for name, parameter in model.named_parameters():
        block = re.match(r"blocks\.(\d+)\.", name)
        behind = name.startswith(("head.", "head_dist.", "pre_logits.", "norm.", "fc_norm."))
        trains = first <= 0 or behind or (block is not None and int(block[1]) >= first)
        parameter.requires_grad_(trains)
        if not trains:
            frozen.append(name)
    return frozen


def named_parts(names: list[str]) -> str:
    """What parameters are of, in few words: patch_embed, pos_embed, blocks 0-3."""
    blocks = [int(match[1]) for name in names if (match := re.match(r"blocks\.(\d+)\.", name))]
    parts = dict.fromkeys(name.split(".")[0] for name in names if not name.startswith("blocks."))
    last = [f"blocks 0 to {max(blocks)}"] if blocks else []
    return ", ".join([*parts, *last]) or "nothing"
