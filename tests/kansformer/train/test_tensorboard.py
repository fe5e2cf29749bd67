"""TensorBoard's one run folder holds metrics, settings, pictures and learned functions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from kansformer.data import load_data
from kansformer.data.augment import make_augmentation
from kansformer.train import loop
from kansformer.train.run_folder import RunFolder
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, prepared


def read_events(folder: Path) -> EventAccumulator:
    """What TensorBoard reads of a run; all its files are in one folder."""
    files = [path for path in (folder / "tensorboard").rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {folder / "tensorboard"}
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return events


def picture(events: EventAccumulator, tag: str, path: Path) -> np.ndarray:
    (event,) = events.Images(tag)
    path.write_bytes(event.encoded_image_string)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def settings_of(events: EventAccumulator) -> dict[str, Any]:
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_events_hold_metrics_settings_pictures_and_functions(tmp_path: Path, colors: Path) -> None:
    config = tiny_settings(
        colors, tmp_path / "out", epochs=2, seed=3, augment="mirror", report=True
    )
    summary = do(config)
    events = read_events(tmp_path / "out")
    rows = [json.loads(row) for row in (tmp_path / "out" / "metrics.jsonl").read_text().split("\n")
            if row]  # fmt: skip
    for key in ("train_loss", "val_acc1", "lr"):
        values = [(event.step, event.value) for event in events.Scalars(key)]
        assert values == [(row["epoch"], pytest.approx(row[key])) for row in rows]

    settings = settings_of(events)
    assert (settings["epochs"], settings["augment"], settings["seed"]) == (2, "mirror", 3)
    assert settings["lr"] == pytest.approx(3e-3)
    assert str(tmp_path) not in json.dumps(settings)
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = HParamsPluginData.FromString(content).experiment.metric_infos
    assert {info.name.tag for info in metrics} <= set(events.Tags()["scalars"])

    # 16 pictures of 16 pixels in rows of 4, with lines of 2 pixels between
    grid = picture(events, "augmented training pictures", tmp_path / "grid.png")
    assert grid.shape == (4 * 18 + 2, 4 * 18 + 2, 3)
    train = load_data(str(colors)).with_validation(config.val_split, config.seed).train
    run = prepared(tiny_settings(colors, tmp_path / "again", epochs=2, seed=3, augment="mirror"))
    index = run.sampler.order()[5]
    plain = make_augmentation("none", run.preprocessing)(train.open(index))
    shown = grid[18 + 2 : 18 + 18, 18 + 2 : 18 + 18].astype(int)
    wanted = np.asarray(run.preprocessing.denormalize(plain)).astype(int)
    assert min(np.abs(shown - wanted).max(), np.abs(shown - wanted[:, ::-1]).max()) <= 1

    for block in (0, 3):
        drawn = picture(events, f"learned functions, block {block}", tmp_path / "functions.png")
        assert drawn.shape[1] > 500
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50
    (event,) = events.Images("learned functions, block 0")
    assert event.step == summary["best_epoch"]


def test_an_mlp_has_no_functions_to_show(tmp_path: Path, colors: Path) -> None:
    do(tiny_settings(colors, tmp_path / "out", epochs=1, ffn="mlp", report=True))
    assert read_events(tmp_path / "out").Tags()["images"] == ["augmented training pictures"]


def test_the_folder_is_started_once(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, calls = RunFolder.start, []
    monkeypatch.setattr(RunFolder, "start", lambda *given: (calls.append(1), begin(*given))[1])
    do(tiny_settings(colors, tmp_path / "out", epochs=2))
    assert calls == [1]


def test_a_run_that_replaces_another_removes_its_events(tmp_path: Path, colors: Path) -> None:
    do(tiny_settings(colors, tmp_path / "out", epochs=3))
    do(tiny_settings(colors, tmp_path / "out", epochs=1, seed=5, overwrite=True))
    events = read_events(tmp_path / "out")
    assert [event.step for event in events.Scalars("val_loss")] == [1]
    assert settings_of(events)["seed"] == 5


def test_a_drawing_that_fails_does_not_fail_the_run(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kansformer.train.tensorboard.function_figures", lambda *rest: 1 / 0)
    lines: list[str] = []
    do(tiny_settings(colors, tmp_path / "out", epochs=1, report=True), lines.append)
    assert "no functions for TensorBoard: division by zero" in lines
    assert (tmp_path / "out" / "summary.json").is_file()
    assert loop.load_model(tmp_path / "out" / "best.safetensors")
