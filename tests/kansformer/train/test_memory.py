"""Where memory is short, a batch is worked on in pieces, and the result stays the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kansformer.errors import JobFailed
from kansformer.train import memory
from kansformer.train.loss import Criterion
from kansformer.train.run_folder import checksum
from models.vit_model import VisionTransformer, create_model
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final

CPU = torch.device("cpu")


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
    monkeypatch.setattr(memory, "_fits", lambda model, criterion, size, device: size < 1)
    with pytest.raises(JobFailed, match="not even one picture"):
        do(tiny_settings(colours, tmp_path / "none", **settings))


def test_memory_is_tried_with_and_without_an_error_class() -> None:
    model = create_model("vit_micro_patch4_8", num_classes=2)
    before = checksum(dict(model.state_dict()))
    assert memory._fits(model, Criterion(), 2, CPU)
    assert all(p.grad is None for p in model.parameters())
    for error in (
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("can't allocate memory"),
    ):

        def fail(x: Tensor, error: Exception = error) -> Tensor:
            raise error

        model.forward = fail  # type: ignore[method-assign]
        assert not memory._fits(model, Criterion(), 2, CPU)
    model.forward = lambda x: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        memory._fits(model, Criterion(), 2, CPU)
    assert checksum(dict(model.state_dict())) == before
