"""Training tests run in a temporary working directory."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from kansformer.train.config import TrainConfig


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain gradient descent, for comparisons up to rounding.

    Adam divides by the gradient's size. Where a gradient is zero up to rounding, as for the biases
    of the keys, two orders of summation would end far apart.
    """

    def make(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)

    monkeypatch.setattr("kansformer.train.run.make_optimizer", make)


@pytest.fixture
def steady_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW that divides by at least 1e-3, so that rounding errors stay small (see `sgd`)."""
    monkeypatch.setattr("kansformer.train.optimizer.AdamW", partial(torch.optim.AdamW, eps=1e-3))
