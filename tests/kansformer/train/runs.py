"""Helpers of the training tests: a run, its final state, and a signal in the middle of it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kansformer.data import load_data
from kansformer.train import loop, train
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.train.prepare import prepare
from kansformer.train.run import Run
from kansformer.train.run_folder import checksum

# settings with randomness or state of their own
TRICKS = {"mixup": 0.2, "cutmix": 0.5, "drop_path_rate": 0.2, "drop_rate": 0.1, "ema": 0.9}


def do(config: TrainConfig, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains on the data that the settings name; returns the summary."""
    data = load_data(config.data_path).with_validation(config.val_split, config.seed)
    return train(config, data, log)


def prepared(config: TrainConfig) -> Run:
    """A run that has not started, on one CPU."""
    data = load_data(config.data_path).with_validation(config.val_split, config.seed)
    return prepare(config, data, Ranks(0, 1, torch.device("cpu")), lambda line: None, None)


def state(folder: Path) -> dict[str, Any]:
    """The contents of last.pt."""
    return torch.load(folder / "last.pt", weights_only=True)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two states hold the same bits of weights, average and optimizer."""
    keys = ("model", "average", "optimizer")
    return checksum({k: a[k] for k in keys}) == checksum({k: b[k] for k in keys})


def final(folder: Path) -> dict[str, Tensor]:
    """The weights after the last step."""
    return state(folder)["model"]


def stop_after(steps: int, work: Callable[[], object]) -> None:
    """Runs a training that receives SIGTERM in the step of that number, counted from 1."""
    compute_gradient, left = loop.compute_gradient, iter(range(steps - 1))

    def patched(*arguments: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_gradient(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compute_gradient", patched)
        work()
