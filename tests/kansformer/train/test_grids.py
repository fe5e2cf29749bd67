"""Grids are calibrated, updated and refined as set, and resume to the same bits."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kansformer.checkpoint import load_model
from kansformer.data import PictureDataset, load_data
from kansformer.errors import Stopped
from kansformer.train.run_folder import checksum
from models.kan_grid import spline_layers
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final, state, stop_after


def test_calibrated_grids_span_the_activations(tmp_path: Path, colors: Path) -> None:
    def outside(folder: str, **changes: Any) -> list[float]:
        config = tiny_settings(colors, tmp_path / folder, epochs=1, max_steps=1, **changes)
        do(replace(config, lr=0.0))
        model = load_model(tmp_path / folder / "best.safetensors")
        shares: list[float] = []

        def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            x, k = layer.spline_inputs(inputs[0]), layer.spline_order
            low, high = layer.grid[:, k], layer.grid[:, -k - 1]
            shares.append(float(((x < low) | (x > high)).float().mean()))

        for layer in spline_layers(model).values():
            layer.register_forward_pre_hook(look)
        pictures = PictureDataset(load_data(str(colors)).train, model.preprocessing)
        with torch.no_grad():
            model(torch.stack([pictures[0, i][0] for i in range(30)]))
        return shares

    plain = outside("plain")
    calibrated = outside("calibrated", calibrate_grid=True, augment="none")
    assert len(plain) == len(calibrated) == 8
    assert max(calibrated) < 0.05
    assert max(calibrated) < max(plain)


@pytest.mark.parametrize("ffn", ["kan", "group-kan"])
@pytest.mark.parametrize("change", [{"refine_grid": ((1, 16),)}, {"update_grid_every": 1}])
def test_grids_change_between_epochs_and_resume_to_the_same_bits(
    tmp_path: Path, colors: Path, change: dict[str, Any], ffn: str
) -> None:
    settings = {"epochs": 4, "ffn": ffn, "ema": 0.9, **change}
    lines: list[str] = []
    do(tiny_settings(colors, tmp_path / "whole", **settings), lines.append)
    due = 1 if "refine_grid" in change else 3
    assert sum(line.startswith("grids") for line in lines) == due
    with pytest.raises(Stopped):  # in the second epoch, whose grids have changed already
        stop_after(5, lambda: do(tiny_settings(colors, tmp_path / "parts", **settings)))
    do(tiny_settings(colors, tmp_path / "parts", **settings, resume=True))
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    for key in ("model", "average", "optimizer"):
        assert checksum(whole[key]) == checksum(parts[key])
    model = load_model(tmp_path / "whole" / "best.safetensors")
    before = 5 if ffn == "kan" else 8
    after = 16 if "refine_grid" in change else before
    assert model.config.grid_size in (before, after)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["model"]["grid_size"] == after


def test_refinement_keeps_the_functions(tmp_path: Path, colors: Path) -> None:
    """With a learning rate of 0, a grid of twice the size computes the same function."""
    for name, change in (("plain", None), ("finer", ((1, 10), (2, 20)))):
        do(tiny_settings(colors, tmp_path / name, epochs=3, lr=0.0, refine_grid=change))
    losses = [
        [json.loads(line)["val_loss"] for line in
         (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "finer")
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert final(tmp_path / "finer")["blocks.0.mlp.fc1.spline_weight"].shape[-1] == 23


def test_refinements_are_parsed(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    status, _, err = command("train", "--data-path", "digits", "--refine-grid", "ten")
    assert status == 2
    assert "EPOCH:SIZE" in err
    flags = "--epochs 2 --max-steps 1 --batch-size 8 --no-report --refine-grid 1:10 --output"
    status, out, _ = command("train", "--data-path", "digits", *flags.split(), tmp_path / "r")
    assert status == 0
    assert "refined to 10 intervals" in out
