"""Checks of the settings against model and data, before a run writes anything.

What can be checked without model and data is checked in `TrainConfig`.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from kansformer.data import PictureData
from kansformer.errors import UserError
from kansformer.pretrained import LoadReport
from kansformer.train.config import TUNE, TrainConfig, flag_name
from kansformer.train.distributed import Ranks
from kansformer.train.grids import fit_to_pictures, grid_changes
from kansformer.train.tune import trained_names
from kansformer.words import number
from models.kan_grid import refine_grid, spline_layers, update_grid
from models.vit_model import VisionTransformer

SPLINE_SETTINGS = (
    "calibrate_grid", "update_grid_every", "refine_grid", "spline_penalty", "spline_lr",
    "spline_decay",
)  # fmt: skip
# settings of training steps, which a head that is fitted to features does not take
STEP_SETTINGS = (
    "epochs", "patience", "time_budget", "batch_size", "accumulate", "auto_batch", "lr", "find_lr",
    "lrf", "warmup_epochs", "layer_decay", "weight_decay", "clip_grad", "label_smoothing", "mixup",
    "cutmix", "random_erasing", "drop_rate", "drop_path_rate", "ema", "teacher", "amp", "compile",
    "max_steps", "update_grid_every", "refine_grid",
)  # fmt: skip


def check_settings(
    config: TrainConfig,
    data: PictureData,
    model: VisionTransformer,
    loaded: LoadReport | None,
    ranks: Ranks,
) -> None:
    """Rejects settings that this model, these pictures or these processes cannot be used with.

    Args:
        loaded: the report on the weights file, if there is one.

    Raises:
        UserError: for the first such setting.
    """
    step_size = config.batch_size * config.accumulate * ranks.world
    if ranks.world > 1 and len(data.train) < step_size:
        raise UserError(
            f"{number(len(data.train), 'training picture')}, too few for a step of {step_size} on"
            f" {ranks.world} processes; lower --batch-size"
        )
    if config.tuned == {"splines"} and not has_block_splines(model):
        raise UserError(
            "--tune splines: the model's blocks have no splines; choose --ffn group-kan, or tune"
            " another part"
        )
    if loaded and config.tuned != {"all"}:
        if loaded.left_out_mlps and not config.distill:
            raise UserError(
                f"{config.tune_flag} would leave the KAN blocks random; leave out --no-distill"
            )
        fresh_head = any(name.startswith("head.") for name in loaded.fresh)
        if fresh_head and "head" not in config.tuned and not config.head_first:
            raise UserError(
                f"{config.tune_flag} would leave the head random; leave out --no-head-first, or"
                f" give --tune {config.tune},head"
            )
    sizes = {layer.grid_size for layer in spline_layers(model).values()}
    refined = [size for _, size in config.refine_grid or ()]
    if sizes and refined and min(refined) <= max(sizes):
        raise UserError(
            f"--refine-grid: {number(min(refined), 'interval')}, not more than the {max(sizes)} of"
            " the model's grids; give larger sizes, or lower --grid-size"
        )


def has_block_splines(model: VisionTransformer) -> bool:
    """Whether --tune splines has anything to train."""
    return bool(trained_names(model, frozenset({"splines"})))


def reset_unused_settings(
    config: TrainConfig, model: VisionTransformer, ranks: Ranks, log: Callable[[str], None]
) -> TrainConfig:
    """Warns of settings without effect, and resets those of splines: defaults, no --tune splines.

    They are no errors, since `kansformer.compare` passes the same flags to a KAN and to an MLP.
    """
    unused: dict[str, Any] = {}
    if "splines" in config.tuned and not has_block_splines(model):
        log(f"warning: --tune {config.tune}: the model's blocks have no splines; the rest trains")
        rest = ",".join(part for part in TUNE if part in config.tuned - {"splines"})
        config = replace(config, tune=rest)
    if not spline_layers(model):
        defaults = {setting.name: setting.default for setting in fields(TrainConfig)}
        for name in SPLINE_SETTINGS:
            if getattr(config, name) != defaults[name]:
                log(f"warning: {flag_name(name)} has no effect: the model has no splines")
                unused[name] = defaults[name]
    if config.head_only:  # there are no training steps
        unused |= {"epochs": 1, "refine_grid": None, "update_grid_every": 0, "ema": 0.0,
                   "find_lr": False, "auto_batch": False}  # fmt: skip
    if (config.mixup or config.cutmix) and config.batch_size % 2:
        log("warning: --mixup and --cutmix have no effect on batches of odd size; make --batch-size"
            " even")  # fmt: skip
    if config.save_delta and (config.tuned == {"all"} or config.unfreeze_every):
        log("warning: --save-delta will be as large as the model, since all of it trains; --tune"
            " splines,head keeps it small")  # fmt: skip
    if config.shard and ranks.world == 1:
        log("warning: --shard has no effect on one process; start several with torchrun")
    return replace(config, **unused)


def check_grid_updates(config: TrainConfig, model: VisionTransformer, images: Tensor) -> None:
    """Tries --update-grid-every on a copy of the model, with the finest grids it will be used on.

    All ranks must call it.

    Args:
        images: (B, C, S, S), the pictures to which grids are fitted.

    Raises:
        UserError: a layer has too few distinct inputs for its grid.
    """
    updates = [epoch for epoch in range(config.epochs) if grid_changes(config, epoch)[0]]
    if not updates:
        return
    trial = copy.deepcopy(model)
    sizes = [size for epoch, size in config.refine_grid or () if epoch < updates[-1]]
    for layer in spline_layers(trial).values() if sizes else ():
        refine_grid(layer, max(sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about single features; the updates themselves will warn
        fit_to_pictures(trial, images, update_grid, "--update-grid-every")
