"""Rates are tried with the steps of the run, whose weights are restored afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kansformer.train import find_lr, loop
from kansformer.train.find_lr import SAFETY_FACTOR, best_rate, find_learning_rate
from kansformer.train.run_folder import checksum
from kansformer.train.step import ready_model
from models.vit_model import VisionTransformer
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final, prepared


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.3, "amp": "fp16", "ema": 0.9}])
def test_the_search_leaves_no_traces(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(find_lr, "TRIALS", 30)
    lines: list[str] = []
    out = tmp_path / "out"
    changes = {"epochs": 2, **changes}
    summary = do(tiny_settings(colors, out, find_lr=True, lr=7.0, **changes), lines.append)
    assert 1e-6 < summary["lr"] < 0.1
    assert any("--find-lr chose" in line for line in lines)
    assert json.loads((out / "config.json").read_text())["train"]["lr"] == summary["lr"]
    again = do(tiny_settings(colors, out, find_lr=True, lr=7.0, resume=True, **changes))
    assert again["lr"] == summary["lr"]
    fixed = do(tiny_settings(colors, tmp_path / "fixed", lr=summary["lr"], **changes))
    assert fixed["lr"] == summary["lr"]
    assert checksum(final(out)) == checksum(final(tmp_path / "fixed"))


def test_the_rate_of_the_lowest_loss_is_where_learning_is_fastest(
    tmp_path: Path, colors: Path
) -> None:
    run = prepared(tiny_settings(colors, tmp_path / "out"))
    before = checksum(dict(run.model.state_dict()))
    rate = find_learning_rate(run)
    assert 1e-5 < rate <= 1e-1
    assert checksum(dict(run.model.state_dict())) == before
    assert not run.optimizer.state
    ready_model(run)
    assert best_rate(run) == pytest.approx(SAFETY_FACTOR * rate)


def first_steps(
    monkeypatch: pytest.MonkeyPatch, config: Any
) -> dict[str, tuple[list[object], dict[str, Tensor]]]:
    """The model's inputs in the first step of search and of training, and the gradients."""
    phases: dict[str, tuple[list[object], dict[str, Tensor]]] = {}
    calls: list[object] = []
    forward = VisionTransformer.forward

    def watched_forward(self: VisionTransformer, x: Tensor) -> Tensor:
        if self.training:
            calls.append((tuple(x.shape), torch.is_autocast_enabled("cpu"), checksum(x)))
        return forward(self, x)

    def watch(phase: str, take: Callable[..., Any]) -> Callable[..., Any]:
        def watched(run: Any, *arguments: Any) -> Any:
            calls.clear()
            result = take(run, *arguments)
            gradients = {
                n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None
            }
            phases.setdefault(phase, (list(calls), gradients))
            return result

        return watched

    monkeypatch.setattr(find_lr, "TRIALS", 3)
    monkeypatch.setattr(VisionTransformer, "forward", watched_forward)
    monkeypatch.setattr(find_lr, "compute_gradient", watch("search", find_lr.compute_gradient))
    monkeypatch.setattr(loop, "compute_gradient", watch("training", loop.compute_gradient))
    do(config)
    return phases


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"freeze_layers": True, "head_first": False},
        {"tune": "splines,biases"},
        {"amp": "bf16", "mixup": 0.4, "accumulate": 2, "batch_size": 4},
        {"clip_grad": 0.1, "spline_penalty": 0.1, "drop_rate": 0.2},
        {"auto_batch": True},
    ],
)
def test_a_step_of_the_search_is_a_step_of_training(
    tmp_path: Path,
    colors: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    if {"freeze_layers", "tune"} & changes.keys():
        changes = {**changes, "weights": str(trained / "best.safetensors")}
    if "auto_batch" in changes:  # no more than 3 pictures fit
        forward = VisionTransformer.forward

        def short(self: VisionTransformer, x: Tensor) -> Tensor:
            if self.training and len(x) > 3:
                raise torch.OutOfMemoryError("no more")
            return forward(self, x)

        monkeypatch.setattr(VisionTransformer, "forward", short)
    config = tiny_settings(colors, tmp_path / "out", find_lr=True, epochs=1, **changes)
    phases = first_steps(monkeypatch, config)
    (seen, gradient), (seen_later, gradient_later) = phases["search"], phases["training"]
    assert seen == seen_later
    assert gradient.keys() == gradient_later.keys()
    assert all(torch.equal(gradient[name], gradient_later[name]) for name in gradient)
    if "freeze_layers" in changes:
        assert {name.split(".")[0] for name in gradient} == {"head", "norm"}
