"""Settings checked against the model and the data, before a run writes anything.

What a setting's value tells by itself is checked in `TrainConfig`.
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
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.train.grids import fit_to_pictures, grid_changes
from kansformer.words import number
from models.kan_grid import refine_grid, spline_layers, update_grid
from models.vit_model import VisionTransformer

FOR_SPLINES = (
    "calibrate_grid", "update_grid_every", "refine_grid", "spline_penalty", "spline_lr",
    "spline_decay",
)  # fmt: skip


def check_settings(
    config: TrainConfig,
    data: PictureData,
    model: VisionTransformer,
    loaded: LoadReport | None,
    ranks: Ranks,
) -> None:
    """Refuses settings that do not go with this model, these pictures or these processes.

    Args:
        loaded: the report on the weights file, if there is one.

    Raises:
        UserError: the first of them.
    """
    step_size = config.batch_size * config.accumulate * ranks.world
    if ranks.world > 1 and len(data.train) < step_size:
        raise UserError(
            f"{number(len(data.train), 'training picture')}, too few for a step of {step_size} on"
            f" {ranks.world} processes; lower --batch-size"
        )
    if loaded and loaded.left_out_mlps and config.freeze_layers and not config.distill:
        raise UserError("--freeze-layers would leave the KAN blocks random; leave out --no-distill")
    sizes = {layer.grid_size for layer in spline_layers(model).values()}
    refined = [size for _, size in config.refine_grid or ()]
    if sizes and refined and min(refined) <= max(sizes):
        raise UserError(
            f"--refine-grid: {number(min(refined), 'interval')}, not more than the {max(sizes)}"
            " that the model has; give larger sizes, or lower --grid-size"
        )


def without_idle_settings(
    config: TrainConfig, model: VisionTransformer, ranks: Ranks, say: Callable[[str], None]
) -> TrainConfig:
    """Says which settings have no effect here; those of splines get their defaults.

    They are no errors: `kansformer.compare` gives the same flags to a KAN and to an MLP.
    """
    idle: dict[str, Any] = {}
    if not spline_layers(model):
        defaults = {setting.name: setting.default for setting in fields(TrainConfig)}
        idle = {n: defaults[n] for n in FOR_SPLINES if getattr(config, n) != defaults[n]}
    for name in idle:
        say(f"warning: --{name.replace('_', '-')} has no effect: the model has no splines")
    if (config.mixup or config.cutmix) and config.batch_size % 2:
        say("warning: --mixup and --cutmix have no effect on batches of odd size; make --batch-size"
            " even")  # fmt: skip
    if config.shard and ranks.world == 1:
        say("warning: --shard has no effect on one process; start several with torchrun")
    return replace(config, **idle)


def check_grids_can_move(config: TrainConfig, model: VisionTransformer, images: Tensor) -> None:
    """Tries --update-grid-every on a copy of the model, on the finest grids that will be moved.

    All ranks must call it.

    Args:
        images: (B, C, S, S), the pictures to which grids are fitted.

    Raises:
        UserError: a layer has too few distinct inputs for its grid.
    """
    moves = [epoch for epoch in range(config.epochs) if grid_changes(config, epoch)[0]]
    if not moves:
        return
    trial = copy.deepcopy(model)
    sizes = [size for epoch, size in config.refine_grid or () if epoch < moves[-1]]
    for layer in spline_layers(trial).values() if sizes else ():
        refine_grid(layer, max(sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single features, which the moves themselves will say
        fit_to_pictures(trial, images, update_grid, "--update-grid-every")
