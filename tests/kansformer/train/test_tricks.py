"""Each option changes what it is for, and changes nothing when it is off."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from kansformer.checkpoint import load_model
from kansformer.data import PictureData, PictureDataset, Preprocessing, TrainingSampler, load_data
from kansformer.data.augment import make_augmentation
from kansformer.errors import UserError
from kansformer.train import loop, train
from kansformer.train import step as steps
from kansformer.train.configure import configure
from kansformer.train.run_folder import checksum
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final, state

ON = {
    "label_smoothing": 0.3, "mixup": 0.4, "cutmix": 1.0, "random_erasing": 0.9, "ema": 0.9,
    "drop_rate": 0.3, "drop_path_rate": 0.4, "layer_decay": 0.5, "accumulate": 2, "clip_grad": 0.01,
    "class_weights": True, "balanced_sampler": True, "find_lr": True, "spline_penalty": 0.1,
    "calibrate_grid": True, "update_grid_every": 1, "refine_grid": ((1, 10),), "amp": "bf16",
    "weight_decay": 5.0, "spline_lr": 9.0, "spline_decay": 3.0, "warmup_epochs": 0.0, "lrf": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, one with three times the pictures of the other."""
    folder = tmp_path_factory.mktemp("unequal")
    for name, count, color in (("few", 6, 40), ("many", 18, 200)):
        (folder / name).mkdir()
        for i in range(count):
            noise = np.random.default_rng(i + color).normal(color, 50, (16, 16, 3))
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def base(unequal: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of a run without tricks."""
    out = tmp_path_factory.mktemp("base") / "out"
    do(tiny_settings(unequal, out, epochs=3, batch_size=4))
    return state(out)


@pytest.mark.parametrize("name", ON)
def test_a_trick_changes_the_run(
    name: str, unequal: Path, base: dict[str, Any], tmp_path: Path
) -> None:
    do(tiny_settings(unequal, tmp_path / "on", epochs=3, batch_size=4, **{name: ON[name]}))
    keys = ("average",) if name == "ema" else ("model",)
    on = state(tmp_path / "on")
    assert checksum([on[key] for key in keys]) != checksum([base[key] for key in keys])
    if name == "ema":  # does not affect the weights that train
        assert checksum(on["model"]) == checksum(base["model"])


def test_decoded_pictures_are_the_same(unequal: Path, base: dict[str, Any], tmp_path: Path) -> None:
    flags = tiny_settings(unequal, tmp_path / "on", epochs=3, batch_size=4, cache=True).to_dict()
    config, data = configure({**flags, "recipe": "small-pictures"})
    assert data.train.in_memory
    assert data.val is not None
    assert data.val.in_memory
    train(config, data, lambda line: None)
    assert checksum(final(tmp_path / "on")) == checksum(base["model"])


def test_off_changes_nothing(unequal: Path, base: dict[str, Any], tmp_path: Path) -> None:
    off = {
        "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "ema": 0.0, "accumulate": 1,
        "class_weights": False, "balanced_sampler": False, "find_lr": False, "patience": 0,
        "spline_penalty": 0.0, "calibrate_grid": False, "update_grid_every": 0, "amp": "none",
        "refine_grid": None, "time_budget": None, "teacher": None, "auto_batch": False,
        "compile": False, "layer_decay": 1.0, "shard": False,
    }  # fmt: skip
    do(tiny_settings(unequal, tmp_path / "off", epochs=3, batch_size=4, **off))
    assert checksum(final(tmp_path / "off")) == checksum(base["model"])


@pytest.mark.usefixtures("sgd")
def test_four_small_batches_are_a_large_one(tmp_path: Path, colors: Path) -> None:
    for name, batch, accumulate in (("large", 8, 1), ("small", 2, 4), ("odd", 3, 2)):
        config = tiny_settings(
            colors, tmp_path / name, epochs=2, batch_size=batch, accumulate=accumulate, lr=0.02,
            warmup_epochs=0.0, class_weights=True, spline_penalty=0.01,
        )  # fmt: skip
        do(config)
    large, small = final(tmp_path / "large"), final(tmp_path / "small")
    assert max(float((large[n] - small[n]).abs().max()) for n in large) < 1e-6
    assert max(float((large[n] - final(tmp_path / "odd")[n]).abs().max()) for n in large) > 1e-4


def test_erased_pictures_are_the_share_that_was_set() -> None:
    preprocessing = Preprocessing(16)
    image = Image.new("RGB", (16, 16), "white")
    plain = make_augmentation("none", preprocessing)(image)
    erase = make_augmentation("none", preprocessing, random_erasing=0.3)
    changed = [not torch.equal(erase(image), plain) for _ in range(400)]
    assert 0.2 < np.mean(changed) < 0.4


def test_the_average_is_what_is_saved(tmp_path: Path, colors: Path) -> None:
    do(tiny_settings(colors, tmp_path / "out", epochs=1, ema=0.5, max_steps=3))
    path: list[dict[str, Tensor]] = []

    def log(line: str) -> None:
        if line.startswith("epoch"):
            path.append(final(tmp_path / "steps"))

    # the same three steps again, to see the weights before each
    compute_gradient = loop.compute_gradient
    states: list[dict[str, Tensor]] = []

    def watched(run: Any, step: int, parts: Any) -> Any:
        states.append({n: v.clone() for n, v in run.model.state_dict().items()})
        return compute_gradient(run, step, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compute_gradient", watched)
        do(tiny_settings(colors, tmp_path / "steps", epochs=1, ema=0.5, max_steps=3), log)
    average = dict(states[0])
    for number, weights in enumerate([*states[1:], path[0]], start=1):
        # timm's warm-up of the decay: 1 - step^(-2/3), with the first update a copy
        decay = 0.0 if number == 1 else min(1 - number ** (-2 / 3), 0.5)
        for name, value in weights.items():
            average[name] = decay * average[name] + (1 - decay) * value
    saved = load_model(tmp_path / "out" / "best.safetensors").state_dict()
    kept = state(tmp_path / "out")["average"]
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(saved[name], kept[name])


def test_classes_are_drawn_equally_often(unequal: Path) -> None:
    labels = load_data(str(unequal)).train.labels
    for balanced, share in ((False, 0.25), (True, 0.5)):
        sampler = TrainingSampler(labels, 4, balanced=balanced)
        drawn = []
        for sampler.epoch in range(50):
            drawn += sampler.order()
        assert np.mean(labels[drawn] == 0) == pytest.approx(share, abs=0.05)
        assert len(drawn) == 50 * len(labels)
        two = [TrainingSampler(labels, 2, rank=r, world=2, balanced=balanced) for r in (0, 1)]
        for sampler in two:
            sampler.epoch = 7
        assert two[0].order() == two[1].order()


def unbalanced_digits() -> PictureData:
    """Digits with a tenth of the training pictures of every other class."""
    data = load_data("digits").with_validation(0.1, 0)
    chance = np.random.default_rng(0)
    keep = (data.train.labels % 2 == 0) | (chance.random(len(data.train)) < 0.1)
    return replace(data, train=data.train.take(np.flatnonzero(keep)))


@pytest.mark.slow
def test_an_unbalanced_set_gains(tmp_path: Path) -> None:
    data = unbalanced_digits()
    scores = {}
    for trick in ("none", "balanced_sampler", "class_weights"):
        config = tiny_settings(
            "digits", tmp_path / trick, model="kansformer_micro_patch4_8", epochs=6,
            batch_size=32, augment="none", **({} if trick == "none" else {trick: True}),
        )  # fmt: skip
        train(config, data, lambda line: None)
        model = load_model(tmp_path / trick / "best.safetensors")
        assert data.test is not None
        test = PictureDataset(data.test, model.preprocessing)
        images = torch.stack([test[0, i][0] for i in range(len(test))])
        with torch.no_grad():
            scores[trick] = balanced_accuracy_score(data.test.labels, model(images).argmax(-1))
    baseline = scores.pop("none")
    assert min(scores.values()) > baseline + 0.02, (baseline, scores)


@pytest.mark.slow
def test_bf16_trains_as_well_as_float32(tmp_path: Path) -> None:
    accuracy = {}
    for amp in ("none", "bf16"):
        # Two seeds, and averaged weights: one of the 359 pictures is 0.3 points, and rounding, in
        # float32 too, decides two or three of them.
        values = []
        for seed in (0, 1):
            config = tiny_settings(
                "digits", tmp_path / f"{amp}-{seed}", model="kansformer_micro_patch4_8", epochs=5,
                batch_size=32, augment="none", lr=3e-3, amp=amp, ema=0.98, seed=seed,
            )  # fmt: skip
            values.append(do(config)["test_acc1"])
        accuracy[amp] = sum(values) / len(values)
    assert accuracy["none"] > 90
    assert abs(accuracy["bf16"] - accuracy["none"]) < 1, accuracy


def test_fp16s_overflow_is_no_bad_step(tmp_path: Path, colors: Path) -> None:
    lines: list[str] = []
    config = tiny_settings(colors, tmp_path / "out", epochs=4, amp="fp16")
    clip, left = steps.clip_gradients, iter(range(4))

    def overflowing(model: nn.Module, largest: float) -> Tensor:
        norm = clip(model, largest)
        return norm if next(left, None) is None else norm * float("inf")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "clip_gradients", overflowing)
        do(config, lines.append)
    assert not any("skipped" in line or "back to" in line for line in lines)
    saved = state(tmp_path / "out")
    assert saved["scaler"]["scale"] > 1
    assert saved["progress"]["history"][-1]["val_acc1"] > 60


def test_a_compiled_model_trains_alike(tmp_path: Path, colors: Path) -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    compile_ = nn.Module.compile
    for name, on in (("plain", False), ("compiled", True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Module, "compile", lambda self: compile_(self, backend=backend))
            do(tiny_settings(colors, tmp_path / name, epochs=1, compile=on))
        assert bool(calls) == on
    a, b = final(tmp_path / "plain"), final(tmp_path / "compiled")
    assert a.keys() == b.keys()
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-4


@pytest.mark.parametrize(("metric", "epoch"), [("acc1", 2), ("loss", 3)])
def test_the_best_epoch_is_kept(
    metric: str, epoch: int, tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([(50.0, 2.0), (90.0, 0.4), (80.0, 0.2), (70.0, 0.3)])

    def evaluated(*arguments: object) -> dict[str, float]:
        accuracy, loss = next(values)
        return {"acc1": accuracy, "loss": loss, "count": 4, "seconds": 0.0}

    monkeypatch.setattr(loop, "evaluate_on_ranks", evaluated)
    summary = do(tiny_settings(colors, tmp_path / "out", epochs=4, eval_metric=metric))
    assert summary["best_epoch"] == epoch
    assert load_model(tmp_path / "out" / "best.safetensors").training_info["epoch"] == epoch


def test_patience_ends_a_run(tmp_path: Path, colors: Path) -> None:
    lines: list[str] = []
    config = tiny_settings(colors, tmp_path / "out", epochs=9, patience=2, lr=0.0)
    summary = do(config, lines.append)
    assert "stopped early: no improvement for 2 epochs" in lines
    assert summary["epochs"] < 9
    assert summary["epochs"] - summary["best_epoch"] == 2
    again = do(replace(config, patience=3, resume=True))
    assert again["epochs"] - again["best_epoch"] == 3


def test_a_time_budget_ends_a_run(tmp_path: Path, colors: Path) -> None:
    lines: list[str] = []
    config = tiny_settings(colors, tmp_path / "out", epochs=10_000, time_budget=0.03)
    summary = do(config, lines.append)
    assert 0 < summary["epochs"] < 10_000
    assert any("--time-budget is used up" in line for line in lines)
    assert load_model(tmp_path / "out" / "best.safetensors")
    with pytest.raises(UserError, match="--time-budget must be"):
        tiny_settings(colors, "x", time_budget=-1.0)


def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    for changes in (
        {"shard": True, "amp": "fp16"}, {"shard": True, "refine_grid": ((1, 8),)},
        {"teacher_temperature": 0.0}, {"ema": 1.5}, {"accumulate": 0}, {"patience": -1},
        {"random_erasing": 2.0},
    ):  # fmt: skip
        with pytest.raises(UserError, match="--"):
            tiny_settings("digits", tmp_path, **changes)


def test_schedules_have_all_their_steps() -> None:
    labels = np.zeros(100, dtype=np.int64)
    for batch, accumulate, world in itertools.product((3, 8), (1, 4), (1, 2)):
        sampler = TrainingSampler(labels, batch, accumulate=accumulate, world=world)
        assert sampler.steps == 100 // (batch * accumulate * world)
    assert TrainingSampler(labels, 64, accumulate=4).steps == 1
    batches = TrainingSampler(labels, 64, accumulate=4).batches(0)
    assert [len(batch) for batch in batches] == [64, 36]
    assert math.isclose(sum(map(len, batches)), 100)
