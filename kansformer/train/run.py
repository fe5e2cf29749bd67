"""What a training run consists of, made from its settings or put back from its state."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from kansformer.checkpoint import RecordedSplit
from kansformer.data import (
    PictureData,
    PictureDataset,
    Pictures,
    Preprocessing,
    TrainingSampler,
    make_loader,
    training_loader,
)
from kansformer.data.augment import least_side, make_augmentation
from kansformer.device import usable_cores
from kansformer.evaluate import best_epoch
from kansformer.files import may_write_in
from kansformer.train.build import build_model, fit_to_mlps, sizes_of_twin
from kansformer.train.checks import (
    check_grids_can_move,
    check_settings,
    without_idle_settings,
)
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import (
    Ranks,
    load_whole_optimiser_state,
    load_whole_state,
    may_be_restarted,
    restarts,
    shard,
    whole_optimiser_state,
    whole_state,
)
from kansformer.train.facts import describe
from kansformer.train.grids import calibrate, first_pictures
from kansformer.train.loss import Criterion, Mix, make_criterion, make_mix
from kansformer.train.optimiser import make_optimiser, make_schedule
from kansformer.train.run_folder import RunFolder
from kansformer.train.state import Progress, check_same_run, fingerprint, on_cpu
from kansformer.words import number
from models.kan_grid import resize_grids
from models.twins import count_flops, count_parameters
from models.vit_model import VisionTransformer, ViTConfig


@dataclass
class Run:
    """What a run consists of."""

    config: TrainConfig
    data: PictureData
    ranks: Ranks
    say: Callable[[str], None]
    folder: RunFolder
    project_root: Path | None
    model: VisionTransformer
    preprocessing: Preprocessing
    weights: dict[str, Any] | None  # report on the weights file
    average: ModelEmaV3 | None
    optimiser: AdamW
    schedule: Any  # with timm's `step_update`
    scaler: torch.amp.GradScaler
    criterion: Criterion
    mix: Mix | None
    pictures: PictureDataset  # to train on, augmented
    sampler: TrainingSampler
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    resumed: bool
    pieces: int = 1  # into which a batch is divided
    first_state: dict[str, Any] | None = None  # until one is saved
    progress: Progress = field(default_factory=Progress)
    stepping: nn.Module | None = None  # what is called in training
    frozen: list[str] | None = None  # names of parameters

    @cached_property
    def fingerprint(self) -> str:
        """Of the pictures, by their names and labels."""
        return fingerprint(self.data)

    @cached_property
    def split(self) -> RecordedSplit:
        """What the weights file tells of the validation pictures."""
        assert self.data.val is not None
        return RecordedSplit(self.data.rule, self.data.val.fingerprint(self.data.class_names))

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return min(self.sampler.steps, self.config.max_steps or self.sampler.steps)

    @property
    def judged(self) -> VisionTransformer:
        """The model that is evaluated and kept: the average if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def best(self) -> dict[str, Any]:
        """The row of the epoch whose weights are kept."""
        return best_epoch(self.progress.history, self.config.eval_metric)

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left, or patience or time are at an end."""
        progress, config = self.progress, self.config
        if progress.epoch >= config.epochs:
            return True
        if progress.history and progress.step == 0:
            since = len(progress.history) - self.best["epoch"]
            return 0 < config.patience <= since or self.is_out_of_time
        return False

    @property
    def is_out_of_time(self) -> bool:
        """Whether --time-budget is spent."""
        budget = self.config.time_budget
        return budget is not None and self.progress.total_seconds >= 60 * budget


def prepare(
    config: TrainConfig,
    data: PictureData,
    ranks: Ranks,
    say: Callable[[str], None],
    project_root: Path | None,
) -> Run:
    """All that a run needs, fresh or as it was when its state was saved; nothing is written."""
    assert data.val is not None, "the data needs a validation split"
    resume, overwrite = config.resume, config.overwrite
    what = config.model if config.weights is None else "finetuned"
    output = Path(config.output or Path("weights") / f"{data.name}-{what}")
    if restarts():
        resume, overwrite = resume or (output / "last.pt").is_file(), True
    folder = RunFolder(output, Path(config.data_path), resume=resume, overwrite=overwrite)
    ranks.wait()  # until all have looked, before one writes

    torch.manual_seed(config.seed)
    model, preprocessing, loaded = build_model(config, data)
    preprocessing = replace(preprocessing, levels=data.train.levels)
    check_settings(config, data, model, loaded, ranks)
    config = without_idle_settings(config, model, ranks, say)
    criterion = make_criterion(config, data, preprocessing, ranks.device)
    twin = sizes_of_twin(config, model.config)
    folder.check_space(count_parameters(model), config.ema > 0)
    model.to(ranks.device)
    sampler = TrainingSampler(
        data.train.labels, config.batch_size, accumulate=config.accumulate, rank=ranks.rank,
        world=ranks.world, seed=config.seed, balanced=config.balanced_sampler,
    )  # fmt: skip
    augmentation = make_augmentation(config.augment, preprocessing, config.random_erasing)
    pictures = PictureDataset(
        data.train, augmentation, config.seed, skip_broken=True,
        at_least=least_side(config.augment, preprocessing),
    )  # fmt: skip
    workers = how_many_workers(config, data.train)
    pin = ranks.device.type == "cuda"
    train_loader = training_loader(pictures, sampler, workers=workers, pin=pin)
    val_loader = plain_loader(data.val, preprocessing, config, ranks)

    say_what(say, data, model, twin)
    report: dict[str, Any] | None = None
    if loaded:
        say(f"weights {loaded}")
        fitted = None
        if loaded.left_out_mlps and config.distill and not resume:
            whole = plain_loader(data.val, preprocessing, config, replace(ranks, rank=0, world=1))
            fitted = fit_to_mlps(config, data, model, loaded, train_loader, whole)
            say(f"fitted  {fitted['text']}")
        report = {**loaded.to_dict(), "fitted": fitted}
    if (config.calibrate_grid or config.update_grid_every) and not resume:
        images = first_pictures(train_loader, ranks.device)
        if config.calibrate_grid:
            calibrate(model, images)
        check_grids_can_move(config, model, images)
    average = ModelEmaV3(model, config.ema, use_warmup=True, exclude_buffers=True) if (
        config.ema) else None  # fmt: skip
    if config.shard and ranks.world > 1:
        shard(model)
        if average is not None:
            shard(average.module)
    if config.compile:
        model.compile()
    optimiser = make_optimiser(model, config)
    run = Run(
        config, data, ranks, say, folder, project_root, model, preprocessing, report, average,
        optimiser, make_schedule(optimiser, config, min(sampler.steps, config.max_steps or 10**9)),
        make_scaler(config, ranks.device),
        criterion, make_mix(config, len(data.class_names)), pictures, sampler, train_loader,
        val_loader,
        resume,
    )  # fmt: skip
    on = f"{ranks.device}{f' x {ranks.world}' if ranks.world > 1 else ''}"
    run.say(
        f"run     recipe {config.recipe}, augmentation {config.augment},"
        f" {number(config.epochs, 'epoch')} on {on}, into {folder.path}"
    )
    if resume:
        restore(run, folder.load_state(say))
        at = f", step {run.progress.step}" if run.progress.step else ""
        run.say(f"resumed after epoch {run.progress.epoch}{at}")
    return run


def begin(run: Run) -> None:
    """Keeps the first state of a fresh run, for `recover`; all ranks must call it."""
    run.folder.make()
    if run.resumed:
        return
    run.first_state = on_cpu(state_of(run))
    if may_be_restarted():
        save(run)


def make_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler, which does something with float16 only."""
    return torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")


def renew_optimiser(run: Run) -> None:
    """Puts a new optimiser, with its schedule, in the place of a run's."""
    run.optimiser = make_optimiser(run.model, run.config)
    run.schedule = make_schedule(run.optimiser, run.config, run.steps)


def use_rate(run: Run, rate: float) -> None:
    """Another --lr for a run that has not begun."""
    run.config = replace(run.config, lr=rate)
    renew_optimiser(run)


def how_many_workers(config: TrainConfig, pictures: Pictures) -> int:
    """Processes that load pictures: none for those in memory, else one per core of this rank."""
    if config.workers is not None:
        return config.workers
    if pictures.in_memory:
        return 0
    return min(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 8)


def plain_loader(
    pictures: Pictures, preprocessing: Preprocessing, config: TrainConfig, ranks: Ranks
) -> DataLoader[Any]:
    """Batches for evaluation: this rank's pictures, without augmentation."""
    return make_loader(
        PictureDataset(pictures, preprocessing, skip_broken=True),
        config.batch_size,
        rank=ranks.rank,
        world=ranks.world,
        workers=how_many_workers(config, pictures),
        pin=ranks.device.type == "cuda",
    )


def say_what(
    say: Callable[[str], None], data: PictureData, model: VisionTransformer, twin: dict[str, int]
) -> None:
    """The lines on data and model."""
    sizes = {"training": data.train, "validation": data.val or (), "test": data.test or ()}
    told = [f"{len(part):,} {name}" for name, part in sizes.items() if len(part)]
    last = "picture" if told[-1].startswith("1 ") else "pictures"
    say(f"data    {data.name}: {number(len(data.class_names), 'class')}, {', '.join(told)} {last}")
    say(f"model   {describe(model)}")
    if model.config.ffn != "mlp":
        say(
            f"twin    {twin['parameters']:,} parameters with MLPs,"
            f" {twin['flops_per_image']:,} FLOPs per picture against {count_flops(model):,}"
        )


def state_of(run: Run) -> dict[str, Any]:
    """Everything that the next step depends on, of plain types; all ranks must ask."""
    return {
        "settings": run.config.to_dict(),
        "step_size": run.sampler.step_size,
        "data": run.fingerprint,
        "weights": run.weights,
        "config": run.model.config.to_dict(),
        "model": whole_state(run.model),
        "average": None if run.average is None else whole_state(run.average.module),
        "optimiser": whole_optimiser_state(run.model, run.optimiser),
        "scaler": run.scaler.state_dict(),
        "progress": run.progress.to_dict(),
    }


def restore(run: Run, state: dict[str, Any]) -> None:
    """Puts a saved state back.

    Raises:
        UserError: it is of a run with other settings or pictures.
    """
    check_same_run(state, run.config, run.fingerprint, run.sampler.step_size)
    run.config = replace(run.config, lr=state["settings"]["lr"])  # --find-lr may have chosen it
    run.weights = state["weights"]
    models = {"model": run.model}
    if run.average is not None:
        models["average"] = run.average.module
    for key, model in models.items():
        resize_grids(model, state[key])  # grids may have been refined since it was built
        model.config = ViTConfig.from_dict(state["config"])
        load_whole_state(model, state[key])
    load_whole_optimiser_state(run.model, run.optimiser, state["optimiser"])
    run.schedule = make_schedule(run.optimiser, run.config, run.steps)
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    run.progress = Progress(**state["progress"])
    set_rate(run, max(run.progress.epoch * run.steps + run.progress.step - 1, 0))
    run.stepping = None


def set_rate(run: Run, update: int) -> None:
    """The learning rate of a step, by its number in the whole run.

    Where --time-budget ends before the epochs do, the share of it that is spent counts instead.
    """
    place: float = update
    if run.config.time_budget is not None:  # the same on all ranks, see `train_epoch`
        share = run.progress.total_seconds / (60 * run.config.time_budget)
        place = max(update, share * run.config.epochs * run.steps)
    run.schedule.step_update(place)
    for group in run.optimiser.param_groups:
        group["lr"] *= run.progress.rate


def save(run: Run) -> None:
    """Writes the state; all ranks must call it."""
    state = state_of(run)
    if run.ranks.is_first:
        begin_folder(run)
        run.folder.save_state(state)
    run.first_state = None
    run.ranks.wait()


def begin_folder(run: Run) -> None:
    """Puts this run in the place of an earlier one, before it first writes."""
    if run.first_state is None:  # it has written before
        return
    settings = {
        "train": run.config.to_dict(),
        "model": run.model.config.to_dict(),
        "preprocessing": run.preprocessing.to_dict(),
        "weights": run.weights,
    }
    root = run.project_root
    if root is not None and not may_write_in(root):
        run.say(f"warning: {root} is read-only: its class_indices.json is not written")
        root = None
    run.folder.begin(settings, run.data.class_names, root)
    first = TrainingSampler(run.data.train.labels, 1, seed=run.config.seed,
                            balanced=run.config.balanced_sampler)  # fmt: skip
    run.folder.events.add_settings(run.config.public())
    run.folder.events.add_pictures(run.pictures, first.order(), run.preprocessing)
