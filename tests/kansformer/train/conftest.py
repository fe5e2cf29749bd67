"""Trainings of tests run in folders of their own."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from kansformer.train.config import TrainConfig


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain gradient descent. Adam divides by the gradient's size: where a gradient is zero but for
    rounding, as of the keys' biases, any two orders of a sum end far from each other.
    """

    def make(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)

    monkeypatch.setattr("kansformer.train.run.make_optimiser", make)


@pytest.fixture
def steady_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW that divides by at least 1e-3: gradients of rounding stay small (see `sgd`)."""
    monkeypatch.setattr("kansformer.train.optimiser.AdamW", partial(torch.optim.AdamW, eps=1e-3))
