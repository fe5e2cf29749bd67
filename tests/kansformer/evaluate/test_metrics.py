"""The results of `evaluate`, and how it runs the model."""

import pytest
import torch
from torch import Tensor, nn

from kansformer.evaluate import evaluate
from models.engine import operators


class Probe(nn.Module):
    """Always predicts class 0, and records in which mode a KAN layer would run."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(operators.chosen_mode(images, (), "auto"))
        return images.new_tensor([1.0, 0.0]).expand(len(images), 2)


def test_large_batches_run_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAN_MODE", raising=False)
    model, labels = Probe(), torch.tensor([0, 0, 0, 1])
    large, small = torch.zeros(4, operators.COMPILE_ELEMENTS // 4), torch.zeros(4, 2)
    result = evaluate(model, [(large, labels), (small, labels)], torch.device("cpu"))
    assert model.modes == ["compiled", "eager"]
    assert (result["acc1"], result["count"]) == (75.0, 8)
    model(large)
    assert model.modes[-1] == "eager", "the mode is restored after evaluate"
