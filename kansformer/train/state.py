"""Where a run stands: everything that its next step depends on, and how it is put back.

Generators are not in it, since each step and each picture seeds them anew (see `seed_step`).
"""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from kansformer.data import PictureData
from kansformer.errors import UserError
from kansformer.train.config import TrainConfig
from kansformer.words import number

# settings that may differ between a run and its continuation
FREE_ON_RESUME = (
    "resume", "overwrite", "device", "workers", "download", "download_dir", "output",
    "batch_size", "accumulate",  # of which the product counts, over all ranks
    "auto_batch", "save_minutes", "time_budget", "patience", "report",
)  # fmt: skip


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the present epoch
    loss: float = 0.0  # sum over its pictures, nats
    pictures: int = 0
    seconds: float = 0.0  # of training in it
    waited: float = 0.0  # seconds of these, for data
    total_seconds: float = 0.0  # of the whole run
    bad_steps: int = 0  # in a row
    restores: int = 0
    rate: float = 1.0  # factor on the learning rate, lower after each restore
    history: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch

    def next_epoch(self) -> None:
        """Counts the present epoch as finished."""
        self.epoch += 1
        self.step, self.loss, self.pictures, self.seconds, self.waited = 0, 0.0, 0, 0.0, 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in last.pt."""
        return asdict(self)


def on_cpu(value: Any) -> Any:
    """A copy of a state, with its tensors in the CPU's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(item) for item in value)
    return value


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes dropout and timm's mixing, which draws from NumPy, functions of the step.

    So a resumed run draws what it would have drawn.
    """
    torch.manual_seed(hash((seed, step, rank)))
    np.random.seed(hash((seed, step, rank)) % 2**32)


def fingerprint(data: PictureData) -> str:
    """Changes with the classes and with the names, order and labels of the pictures."""
    digest = hashlib.sha256(json.dumps(data.class_names).encode())
    for pictures in (data.train, data.val):
        assert pictures is not None
        names = [pictures.name(index) for index in range(len(pictures))]
        digest.update(json.dumps([names, pictures.labels.tolist()]).encode())
    return digest.hexdigest()


def check_same_run(state: dict[str, Any], config: TrainConfig, data: str, step_size: int) -> None:
    """Looks whether a state is one of this run.

    Args:
        data: the fingerprint of its pictures.

    Raises:
        UserError: the settings or the pictures are others.
    """
    for setting in fields(TrainConfig):
        if setting.name in FREE_ON_RESUME or (setting.name == "lr" and config.find_lr):
            continue
        # a setting that did not exist when the state was written had its default
        default = None if setting.default is MISSING else setting.default
        was, now = state["settings"].get(setting.name, default), getattr(config, setting.name)
        if was != now:
            raise UserError(
                f"--{setting.name.replace('_', '-')} is {now} now and was {was} in the run to"
                " resume; give the same flags, or start anew with --overwrite"
            )
    if state["step_size"] != step_size:
        raise UserError(
            f"a step takes {number(step_size, 'picture')} now and took {state['step_size']} in the"
            " run to resume; choose --batch-size and --accumulate so that with the number of"
            " processes their product is the same"
        )
    if state["data"] != data:
        raise UserError(
            f"{config.data_path}: classes or pictures are not those of the run to resume;"
            " put them back, or start anew with --overwrite"
        )
