"""The model of a run, fresh or from weights, and its MLP twin."""

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
    """Builds the model that the settings describe.

    Returns:
        The model on the CPU, its preprocessing, and the report on the file of --weights if there is
        one.

    Raises:
        UserError: settings that make no model, or weights that cannot be used.
    """
    overrides = config.model_overrides()
    if config.weights is not None:
        if config.match != "none":
            raise UserError(
                "--match is for models from scratch; with --weights, choose --kan-hidden"
            )
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


def twin_sizes(config: TrainConfig, settings: ViTConfig) -> dict[str, int]:
    """Parameters and FLOPs of the same model with MLP blocks."""
    twin = mlp_twin(settings)
    if config.match != "none":  # --match has changed the model's width, which is not its twin's
        twin = replace(twin, mlp_ratio=config.mlp_ratio or model_config(config.model).mlp_ratio)
    return {"parameters": count(twin, "params"), "flops_per_image": count(twin, "flops")}


def distill_mlps(
    config: TrainConfig,
    data: PictureData,
    model: VisionTransformer,
    loaded: LoadReport,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
) -> dict[str, Any]:
    """Fits the model's narrow KAN blocks to the MLP blocks that they replace in the weights file.

    Returns:
        R² of each block and a summary under "text". Where the file's head is kept, also the
        validation accuracy after the fit, and that of the model with its MLPs.
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
    result: dict[str, Any] = {**fit.to_dict(), "text": str(fit)}
    if not any(name.startswith("head.") for name in loaded.fresh):
        result["val_acc1"] = evaluate(model, val_loader, device)["acc1"]
        result["val_acc1_of_mlps"] = evaluate(teacher, val_loader, device)["acc1"]
        result["text"] += (
            f"; validation accuracy {result['val_acc1']:.2f} %, with the MLPs"
            f" {result['val_acc1_of_mlps']:.2f} %"
        )
    return result
