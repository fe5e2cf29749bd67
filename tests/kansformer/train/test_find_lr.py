"""Rates are tried on a copy, and the lowest loss tells which to take."""

import json
from pathlib import Path

import pytest
import torch

from kansformer.train.distributed import Ranks
from kansformer.train.find_lr import best_rate, find_rate
from kansformer.train.loss import Criterion
from kansformer.train.run_folder import checksum
from models.vit_model import create_model
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final

CPU = torch.device("cpu")


def test_rates_are_tried_on_a_copy(tmp_path: Path, colours: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "out"
    summary = do(tiny_settings(colours, out, epochs=2, find_lr=True, lr=7.0), lines.append)
    assert 1e-6 < summary["lr"] < 0.1
    assert any("--find-lr chose" in line for line in lines)
    assert json.loads((out / "config.json").read_text())["train"]["lr"] == summary["lr"]
    again = do(tiny_settings(colours, out, epochs=2, find_lr=True, lr=7.0, resume=True))
    assert again["lr"] == summary["lr"]
    fixed = do(tiny_settings(colours, tmp_path / "fixed", epochs=2, lr=summary["lr"]))
    assert fixed["lr"] == summary["lr"]
    assert checksum(final(out)) == checksum(final(tmp_path / "fixed")), "the trial left traces"


def test_the_rate_of_the_lowest_loss_is_where_learning_is_fastest() -> None:
    model = create_model("vit_micro_patch4_8", num_classes=2)
    before = checksum(dict(model.state_dict()))
    images = torch.randn(16, 3, 8, 8)
    labels = (images.mean((1, 2, 3)) > 0).long()
    config = tiny_settings("x", "y")
    found = find_rate(model, config, Criterion(), [(images, labels)], Ranks(0, 1, CPU))
    assert 1e-5 < found <= 1e-1
    assert checksum(dict(model.state_dict())) == before
    best = best_rate(model, config, Criterion(), [(images, labels)], CPU)
    assert best == pytest.approx(10 * found)
