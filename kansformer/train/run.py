"""The objects that make up a training run, and how far the run has come."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from kansformer.checkpoint import RecordedSplit
from kansformer.data import PictureData, PictureDataset, Preprocessing, TrainingSampler
from kansformer.evaluate import best_epoch
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.train.loss import Criterion, Mix
from kansformer.train.optimizer import make_optimizer, make_schedule
from kansformer.train.run_folder import RunFolder
from models.vit_model import VisionTransformer


@dataclass
class Progress:
    """How far a run has come. The field names are keys in last.pt."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    loss: float = 0.0  # sum over the pictures of these steps, nats
    pictures: int = 0  # seen in these steps
    seconds: float = 0.0  # of training in the current epoch
    waited: float = 0.0  # of these, seconds spent waiting for data
    total_seconds: float = 0.0  # of the whole run
    bad_steps: int = 0  # consecutive steps that were not finite
    restores: int = 0  # how often the last good state was restored
    rate: float = 1.0  # factor on the learning rate, lowered by each restore
    history: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch

    def next_epoch(self) -> None:
        """Counts the current epoch as finished."""
        self.epoch += 1
        self.step, self.loss, self.pictures, self.seconds, self.waited = 0, 0.0, 0, 0.0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in last.pt."""
        return asdict(self)


@dataclass
class Run:
    """All objects of a training run; `prepare` builds them."""

    config: TrainConfig
    data: PictureData
    ranks: Ranks
    log: Callable[[str], None]  # prints a line, on the first rank only
    folder: RunFolder
    project_root: Path | None
    model: VisionTransformer
    preprocessing: Preprocessing
    load_report: dict[str, Any] | None  # on the file of --weights
    ema: ModelEmaV3 | None  # moving average of the weights
    scaler: torch.amp.GradScaler
    criterion: Criterion
    mix: Mix | None  # mixup and cutmix
    train_set: PictureDataset  # augmented
    sampler: TrainingSampler
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    resumed: bool
    optimizer: AdamW = field(init=False)  # see `reset_optimizer`
    schedule: Any = field(init=False)  # has timm's `step_update`
    micro_batches: int = 1  # into which each batch is split, see `auto_batch`
    initial_state: dict[str, Any] | None = None  # of a fresh run, until a state is saved
    folder_started: bool = False  # whether this run has replaced an earlier one in its folder
    progress: Progress = field(default_factory=Progress)
    wrapped_model: nn.Module | None = None  # `model`, in DDP if there are several ranks
    trained: list[str] | None = None  # names of the parameters that train, see `ready_model`

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pictures' names and labels."""
        return fingerprint(self.data)

    @property
    def split(self) -> RecordedSplit:
        """The validation split, as it is recorded in the weights file."""
        assert self.data.val is not None
        return RecordedSplit(self.data.rule, self.data.val.fingerprint(self.data.class_names))

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        if self.config.head_only:
            return 0
        return min(self.sampler.steps, self.config.max_steps or self.sampler.steps)

    @property
    def eval_model(self) -> VisionTransformer:
        """The model that is evaluated and saved: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def best(self) -> dict[str, Any]:
        """The history row of the best epoch, whose weights are kept."""
        return best_epoch(self.progress.history, self.config.eval_metric)

    @property
    def is_done(self) -> bool:
        """Whether all epochs are finished, or --patience or --time-budget is exhausted."""
        progress, config = self.progress, self.config
        if progress.epoch >= config.epochs:
            return True
        if progress.history and progress.step == 0:
            since = progress.epoch - self.best["epoch"]
            return 0 < config.patience <= since or self.is_out_of_time
        return False

    @property
    def is_out_of_time(self) -> bool:
        """Whether --time-budget is exhausted."""
        budget = self.config.time_budget
        return budget is not None and self.progress.total_seconds >= 60 * budget


def reset_optimizer(run: Run) -> None:
    """Gives a run a new optimizer, without moments, and a new schedule."""
    run.optimizer = make_optimizer(run.model, run.config)
    run.schedule = make_schedule(run.optimizer, run.config, run.steps)


def set_learning_rate(run: Run, update: int) -> None:
    """Sets the learning rate of a step, given its number in the whole run.

    If --time-budget will end before the epochs do, the schedule follows the time that is spent
    instead, so that the schedule ends with the time.
    """
    position: float = update
    if run.config.time_budget is not None:  # the same on all ranks, see `train_epoch`
        spent = run.progress.total_seconds / (60 * run.config.time_budget)
        position = max(update, spent * run.config.epochs * run.steps)
    run.schedule.step_update(position)
    for group in run.optimizer.param_groups:
        group["lr"] *= run.progress.rate


def fingerprint(data: PictureData) -> str:
    """SHA-256 of the class names and of the pictures' names, order and labels."""
    digest = hashlib.sha256(json.dumps(data.class_names).encode())
    for pictures in (data.train, data.val):
        assert pictures is not None
        names = [pictures.name(index) for index in range(len(pictures))]
        digest.update(json.dumps([names, pictures.labels.tolist()]).encode())
    return digest.hexdigest()
