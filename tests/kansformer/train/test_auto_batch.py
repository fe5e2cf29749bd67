"""Where memory is short, batches are split into micro-batches, and the result is the same."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kansformer.errors import JobFailed
from kansformer.train import auto_batch
from kansformer.train.run_folder import checksum
from models.vit_model import VisionTransformer
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final, prepared


@pytest.mark.usefixtures("sgd")
def test_where_memory_is_short_batches_are_split(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 2, "lr": 0.02, "warmup_epochs": 0.0, "auto_batch": True, "mixup": 0.3}
    do(tiny_settings(colors, tmp_path / "whole", **settings))
    forward, largest = VisionTransformer.forward, []

    def short(self: VisionTransformer, x: Tensor) -> Tensor:
        if self.training and len(x) > 3:
            raise torch.OutOfMemoryError("no more")
        largest.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(VisionTransformer, "forward", short)
    lines: list[str] = []
    do(tiny_settings(colors, tmp_path / "split", **settings), lines.append)
    assert any("into 4 micro-batches" in line for line in lines)
    whole, split = final(tmp_path / "whole"), final(tmp_path / "split")
    assert max(float((whole[n] - split[n]).abs().max()) for n in whole) < 1e-6
    monkeypatch.setattr(auto_batch, "_fits", lambda run, micro_batches: False)
    with pytest.raises(JobFailed, match="not even one picture"):
        do(tiny_settings(colors, tmp_path / "none", **settings))
    assert not (tmp_path / "none").exists()


def test_errors_of_all_allocators_are_recognized(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(tiny_settings(colors, tmp_path / "out"))
    before = checksum(dict(run.model.state_dict()))
    assert auto_batch._fits(run, 1)
    assert all(p.grad is None for p in run.model.parameters())
    for error in (
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("can't allocate memory"),
    ):

        def fail(self: VisionTransformer, x: Tensor, error: Exception = error) -> Tensor:
            raise error

        monkeypatch.setattr(VisionTransformer, "forward", fail)
        assert not auto_batch._fits(run, 1)
    monkeypatch.setattr(VisionTransformer, "forward", lambda self, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        auto_batch._fits(run, 1)
    assert checksum(dict(run.model.state_dict())) == before


def held_bytes() -> int:
    """Bytes of all live tensors, each storage counted once, without torch's fake tensors."""
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("tune", ["all", "head", "splines,head"])
def test_a_trial_step_holds_all_that_a_real_one_does(
    tune: str, tmp_path: Path, colors: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, their moving average and two moments are there; mixing and autocast are active."""
    changes: dict[str, Any] = {"ema": 0.9, "amp": "bf16", "mixup": 0.4}
    if tune != "all":
        weights = str(trained / "best.safetensors")
        changes |= {"weights": weights, "tune": tune, "head_first": False}
    gc.collect()
    before, held, seen = held_bytes(), [], []
    run = prepared(tiny_settings(colors, tmp_path / "out", **changes))
    forward = VisionTransformer.forward

    def watched(self: VisionTransformer, x: Tensor) -> Tensor:
        held.append(held_bytes() - before)
        seen.append((self.training, torch.is_autocast_enabled("cpu"), x.shape))
        return forward(self, x)

    assert run.mix is not None
    mixed: list[int] = []
    mix = run.mix
    run.mix = lambda images, labels: (mixed.append(len(images)), mix(images, labels))[1]
    monkeypatch.setattr(VisionTransformer, "forward", watched)
    assert auto_batch.choose_micro_batches(run) == 1
    assert seen == [(True, True, (8, 3, 16, 16))]
    assert mixed == [8]
    parameters = list(run.model.parameters())
    all_bytes = sum(p.nbytes for p in parameters)
    training = sum(p.nbytes for p in parameters if p.requires_grad)
    assert (training < all_bytes) == (tune != "all")
    assert (training < all_bytes / 2) == (tune == "head")
    wanted = 2 * all_bytes + 2 * training
    assert wanted <= held[0] < wanted + all_bytes / 2
    assert not run.optimizer.state
