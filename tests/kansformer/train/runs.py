"""What tests of training share: a run, its final state, and a signal in the middle of it."""

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
from kansformer.train.run import Run, prepare


def do(config: TrainConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains on the settings' own data; returns the summary."""
    data = load_data(config.data_path).with_validation(config.val_split, config.seed)
    return train(config, data, say)


def prepared(config: TrainConfig) -> Run:
    """A run that has not begun, on one CPU."""
    data = load_data(config.data_path).with_validation(config.val_split, config.seed)
    return prepare(config, data, Ranks(0, 1, torch.device("cpu")), lambda line: None, None)


def state(folder: Path) -> dict[str, Any]:
    """The contents of last.pt."""
    return torch.load(folder / "last.pt", weights_only=True)


def final(folder: Path) -> dict[str, Tensor]:
    """The weights after the last step."""
    return state(folder)["model"]


def stop_after(steps: int, work: Callable[[], object]) -> None:
    """Runs a training that is told to stop in its so-manieth step."""
    take_step, left = loop.take_step, iter(range(steps - 1))

    def patched(*arguments: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", patched)
        work()
