"""Where memory is short, a batch is worked on in pieces, and the result stays the same."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kansformer.errors import JobFailed
from kansformer.train import memory
from kansformer.train.run_folder import checksum
from models.vit_model import VisionTransformer
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final, prepared


@pytest.mark.usefixtures("sgd")
def test_where_memory_is_short_a_batch_is_worked_on_in_pieces(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 2, "lr": 0.02, "warmup_epochs": 0.0, "auto_batch": True, "mixup": 0.3}
    do(tiny_settings(colours, tmp_path / "whole", **settings))
    forward, largest = VisionTransformer.forward, []

    def short(self: VisionTransformer, x: Tensor) -> Tensor:
        if self.training and len(x) > 3:
            raise torch.OutOfMemoryError("no more")
        largest.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(VisionTransformer, "forward", short)
    lines: list[str] = []
    do(tiny_settings(colours, tmp_path / "pieces", **settings), lines.append)
    assert any("in 4 pieces" in line for line in lines)
    whole, pieces = final(tmp_path / "whole"), final(tmp_path / "pieces")
    assert max(float((whole[n] - pieces[n]).abs().max()) for n in whole) < 1e-6
    monkeypatch.setattr(memory, "_fits", lambda run, pieces: False)
    with pytest.raises(JobFailed, match="not even one picture"):
        do(tiny_settings(colours, tmp_path / "none", **settings))
    assert not (tmp_path / "none").exists()


def test_memory_is_tried_with_and_without_an_error_class(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(tiny_settings(colours, tmp_path / "out"))
    before = checksum(dict(run.model.state_dict()))
    assert memory._fits(run, 1)
    assert all(p.grad is None for p in run.model.parameters())
    for error in (
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("can't allocate memory"),
    ):

        def fail(self: VisionTransformer, x: Tensor, error: Exception = error) -> Tensor:
            raise error

        monkeypatch.setattr(VisionTransformer, "forward", fail)
        assert not memory._fits(run, 1)
    monkeypatch.setattr(VisionTransformer, "forward", lambda self, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        memory._fits(run, 1)
    assert checksum(dict(run.model.state_dict())) == before


def held_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once; not of torch's own stand-ins."""
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("frozen", [False, True])
def test_memory_is_measured_with_all_that_a_step_holds(
    frozen: bool, tmp_path: Path, colours: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the weights there are their average and two moments, and mixing and autocast act."""
    changes: dict[str, Any] = {"ema": 0.9, "amp": "bf16", "mixup": 0.4}
    if frozen:
        changes |= {"weights": str(trained / "best.safetensors"), "freeze_layers": True}
    gc.collect()
    before, held, seen = held_bytes(), [], []
    run = prepared(tiny_settings(colours, tmp_path / "out", **changes))
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
    assert memory.pieces_that_fit(run) == 1
    assert seen == [(True, True, (8, 3, 16, 16))]
    assert mixed == [8]
    parameters = list(run.model.parameters())
    all_bytes = sum(p.nbytes for p in parameters)
    training = sum(p.nbytes for p in parameters if p.requires_grad)
    assert (training < all_bytes / 2) == frozen
    wanted = 2 * all_bytes + 2 * training
    assert wanted <= held[0] < wanted + all_bytes / 2
    assert not run.optimiser.state
