"""The saved state of a run, last.pt: collected, written, checked and restored.

It holds everything that the next step depends on. States of random generators are not part of it,
since each step and each picture seeds them again (see `seed_step`).
"""

from dataclasses import MISSING, fields, replace
from typing import Any

import torch

from kansformer.data import TrainingSampler
from kansformer.errors import UserError
from kansformer.files import may_write_in
from kansformer.train.config import TrainConfig, flag_name
from kansformer.train.distributed import (
    full_optimizer_state,
    full_state,
    load_full_optimizer_state,
    load_full_state,
    may_be_restarted,
)
from kansformer.train.optimizer import make_schedule
from kansformer.train.run import Progress, Run, set_learning_rate
from kansformer.words import number
from models.kan_grid import resize_grids
from models.vit_model import ViTConfig

# settings in which a run and its continuation may differ
FREE_ON_RESUME = (
    "resume", "overwrite", "device", "workers", "download", "download_dir", "output",
    "batch_size", "accumulate",  # only their product counts, over all ranks
    "auto_batch", "cache", "save_minutes", "time_budget", "patience", "report", "save_delta",
)  # fmt: skip


def keep_initial_state(run: Run) -> None:
    """Creates the output folder and keeps the initial state of a fresh run, for `recover`.

    Where torchrun may restart the ranks, the state is saved too. All ranks must call it.
    """
    run.folder.make()
    if run.resumed:
        return
    run.initial_state = to_cpu(collect_state(run))
    if may_be_restarted():
        save(run)


def collect_state(run: Run) -> dict[str, Any]:
    """Everything that the next step depends on, as plain types; all ranks must call it."""
    return {
        "settings": run.config.to_dict(),
        "step_size": run.sampler.step_size,
        "micro_batches": run.micro_batches,  # sums over others would differ in rounding
        "data": run.fingerprint,
        "weights": run.load_report,
        "config": run.model.config.to_dict(),
        "model": full_state(run.model),
        "average": None if run.ema is None else full_state(run.ema.module),
        "optimizer": full_optimizer_state(run.model, run.optimizer),
        "scaler": run.scaler.state_dict(),
        "progress": run.progress.to_dict(),
    }


def to_cpu(value: Any) -> Any:
    """A copy of a state with its tensors in CPU memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(item) for item in value)
    return value


def save(run: Run) -> None:
    """Writes the state; all ranks must call it."""
    state = collect_state(run)
    if run.ranks.is_first:
        start_folder(run)
        run.folder.save_state(state)
    run.initial_state = None
    run.ranks.barrier()


def start_folder(run: Run) -> None:
    """Replaces an earlier run in the output folder, just before this run first writes to it."""
    if run.resumed or run.folder_started:
        return
    run.folder_started = True
    settings = {
        "train": run.config.to_dict(),
        "model": run.model.config.to_dict(),
        "preprocessing": run.preprocessing.to_dict(),
        "weights": run.load_report,
    }
    root = run.project_root
    if root is not None and not may_write_in(root):
        run.log(f"warning: {root} is read-only: its class_indices.json is not written")
        root = None
    run.folder.start(settings, run.data.class_names, root)
    first_epoch = TrainingSampler(run.data.train.labels, 1, seed=run.config.seed,
                                  balanced=run.config.balanced_sampler)  # fmt: skip
    run.folder.tensorboard.add_settings(run.config.public())
    run.folder.tensorboard.add_pictures(run.train_set, first_epoch.order(), run.preprocessing)


def restore(run: Run, state: dict[str, Any]) -> None:
    """Puts a saved state into a run that was built from the same settings.

    Raises:
        UserError: the state is that of a run with other settings or pictures.
    """
    check_same_run(state, run.config, run.fingerprint, run.sampler.step_size)
    if state["settings"]["batch_size"] == run.config.batch_size:
        run.micro_batches = max(run.micro_batches, state.get("micro_batches", 1))
    run.load_report = state["weights"]
    models = {"model": run.model}
    if run.ema is not None:
        models["average"] = run.ema.module
    for key, model in models.items():
        resize_grids(model, state[key])  # grids may have been refined since the model was built
        model.config = ViTConfig.from_dict(state["config"])
        load_full_state(model, state[key])
    # earlier versions spelled the key "optimiser"
    optimizer = state["optimizer"] if "optimizer" in state else state["optimiser"]
    load_full_optimizer_state(run.model, run.optimizer, optimizer)
    run.schedule = make_schedule(run.optimizer, run.config, run.steps)
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    run.progress = Progress(**state["progress"])
    set_learning_rate(run, max(run.progress.epoch * run.steps + run.progress.step - 1, 0))
    run.wrapped_model = None  # parameters may have other shapes than when it was wrapped


def with_choices(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """The settings of a resumed run, with those that it chose itself when it was started.

    Args:
        settings: of the saved state.
    """
    choices: dict[str, Any] = {
        name: settings.get(name) for name in ("img_size", "pool") if getattr(config, name) is None
    }
    if config.find_lr:
        choices["lr"] = settings["lr"]
    return replace(config, **choices)


def check_same_run(state: dict[str, Any], config: TrainConfig, data: str, step_size: int) -> None:
    """Checks that a saved state belongs to this run.

    Args:
        data: the fingerprint of this run's pictures.
        step_size: pictures per step, over all ranks.

    Raises:
        UserError: the settings or the pictures differ.
    """
    for setting in fields(TrainConfig):
        if setting.name in FREE_ON_RESUME:
            continue
        # a setting that did not exist when the state was written had its default value
        default = None if setting.default is MISSING else setting.default
        was, now = state["settings"].get(setting.name, default), getattr(config, setting.name)
        if was != now:
            raise UserError(
                f"{flag_name(setting.name)} is {now} now and was {was} in the run to resume;"
                " give the same flags, or start over with --overwrite"
            )
    if state["step_size"] != step_size:
        raise UserError(
            f"a step takes {number(step_size, 'picture')} now and took {state['step_size']} in the"
            " run to resume; choose --batch-size and --accumulate so that their product with the"
            " number of processes is the same"
        )
    if state["data"] != data:
        raise UserError(
            f"{config.data_path}: classes or pictures are not those of the run to resume;"
            " restore them, or start over with --overwrite"
        )
