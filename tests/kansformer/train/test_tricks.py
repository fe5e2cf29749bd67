"""Each trick changes what it claims to change, and its flag off changes nothing."""

import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from kansformer.checkpoint import TrainedModel, load_model
from kansformer.data import PictureData, PictureDataset, Preprocessing, TrainingSampler, load_data
from kansformer.data.augment import make_augmentation
from kansformer.errors import JobFailed, Stopped, UserError
from kansformer.train import loop, memory, train
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.train.find_lr import best_rate, find_rate
from kansformer.train.grids import spline_layers
from kansformer.train.loss import Criterion, as_teacher, class_weights
from kansformer.train.recipes import configure
from kansformer.train.run_folder import checksum
from models.vit_model import VisionTransformer, create_model
from tests.conftest import tiny_settings

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain gradient descent, which rounding does not amplify as Adam does."""

    def make(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)

    monkeypatch.setattr("kansformer.train.run.make_optimiser", make)


def do(config: TrainConfig, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    data = load_data(config.data_path).with_validation(config.val_split, config.seed)
    return train(config, data, say)


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.pt", weights_only=True)


def final(folder: Path) -> dict[str, Tensor]:
    return state(folder)["model"]


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
    for name, count, colour in (("few", 6, 40), ("many", 18, 200)):
        (folder / name).mkdir()
        for i in range(count):
            noise = np.random.default_rng(i + colour).normal(colour, 50, (16, 16, 3))
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
    if name == "ema":  # looks on
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
def test_four_small_batches_are_a_large_one(tmp_path: Path, colours: Path) -> None:
    for name, batch, accumulate in (("large", 8, 1), ("small", 2, 4), ("odd", 3, 2)):
        config = tiny_settings(
            colours, tmp_path / name, epochs=2, batch_size=batch, accumulate=accumulate, lr=0.02,
            warmup_epochs=0.0, class_weights=True, spline_penalty=0.01,
        )  # fmt: skip
        do(config)
    large, small = final(tmp_path / "large"), final(tmp_path / "small")
    assert max(float((large[n] - small[n]).abs().max()) for n in large) < 1e-6
    assert max(float((large[n] - final(tmp_path / "odd")[n]).abs().max()) for n in large) > 1e-4


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


def test_loss_is_torchs_with_smoothing_and_class_weights() -> None:
    logits, labels = torch.randn(9, 3), torch.tensor([0, 1, 2, 0, 0, 0, 1, 2, 2])
    images = torch.zeros(9, 1, 1, 1)
    weights = class_weights(labels.numpy(), 3)
    assert torch.allclose(weights[labels].mean(), torch.ones(()))
    assert torch.allclose(weights * torch.bincount(labels), torch.full((3,), 3.0))
    for smoothing in (0.0, 0.2):
        ours = Criterion(smoothing)(logits, labels, images)
        torch.testing.assert_close(
            ours.mean(), nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels)
        )
    plain, weighted = Criterion()(logits, labels, images), Criterion(0, weights)(
        logits, labels, images
    )  # fmt: skip
    torch.testing.assert_close(weighted, plain * weights[labels])
    mixed = F.one_hot(labels, 3).float().roll(1, 0) * 0.5 + F.one_hot(labels, 3) * 0.5
    expected = -(mixed * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(Criterion(0.2)(logits, mixed, images), expected)


def test_a_class_without_training_pictures_has_a_finite_weight() -> None:
    assert class_weights(np.array([0, 0, 2]), 3).isfinite().all()


def test_teachers_part_is_hintons() -> None:
    logits, theirs = torch.randn(5, 4), torch.randn(5, 4)
    labels, images = torch.tensor([0, 1, 2, 3, 0]), torch.zeros(5, 1, 1, 1)
    temperature, a = 3.0, 0.7
    found = Criterion(0.1, None, lambda x: theirs, a, temperature)(logits, labels, images).mean()
    soft = nn.KLDivLoss(reduction="batchmean")(
        (logits / temperature).log_softmax(-1), (theirs / temperature).softmax(-1)
    )
    hard = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(found, (1 - a) * hard + a * temperature**2 * soft)
    none = Criterion(0.1, None, lambda x: theirs, 0.0, temperature)(logits, labels, images).mean()
    torch.testing.assert_close(none, hard)


def test_a_teacher_sees_its_own_normalisation_and_speaks_in_our_order() -> None:
    config = create_model("vit_micro_patch4_8", num_classes=3).config
    teacher = TrainedModel(config).eval()
    teacher.class_names = ("a", "b", "c")
    teacher.preprocessing = Preprocessing(8, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    pixels = torch.rand(2, 3, 8, 8)

    def normalised(preprocessing: Preprocessing) -> Tensor:
        mean, std = (
            torch.tensor(v).expand(3)[:, None, None] if isinstance(v, float) else
            torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std)
        )  # fmt: skip
        return (pixels - mean) / std

    ours = Preprocessing(8)
    found = as_teacher(teacher, ["c", "a", "b"], ours)(normalised(ours))
    expected = teacher(normalised(teacher.preprocessing))[:, [2, 0, 1]]
    torch.testing.assert_close(found, expected)
    larger = as_teacher(teacher, ["a", "b", "c"], Preprocessing(16))(torch.rand(2, 3, 16, 16))
    assert larger.shape == (2, 3)
    with pytest.raises(UserError, match="knows no class d"):
        as_teacher(teacher, ["a", "d"], ours)
    with pytest.raises(UserError, match="channels"):
        as_teacher(teacher, ["a", "b"], Preprocessing(8, 1))


def test_a_teacher_guides(tmp_path: Path, colours: Path, trained: Path) -> None:
    best = str(trained / "best.safetensors")
    settings = {"epochs": 2, "teacher": best, "teacher_weight": 1.0}
    do(tiny_settings(colours, tmp_path / "a", **settings))
    do(tiny_settings(colours, tmp_path / "b", **settings, label_smoothing=0.9))
    # with all of the weight on the teacher's answers, labels do not matter
    assert checksum(final(tmp_path / "a")) == checksum(final(tmp_path / "b"))
    info = load_model(tmp_path / "a" / "best.safetensors").training_info["settings"]
    assert "teacher" not in info, "a private path"


def test_erased_pictures_are_the_share_that_was_asked_for() -> None:
    preprocessing = Preprocessing(16)
    image = Image.new("RGB", (16, 16), "white")
    plain = make_augmentation("none", preprocessing)(image)
    erase = make_augmentation("none", preprocessing, random_erasing=0.3)
    changed = [not torch.equal(erase(image), plain) for _ in range(400)]
    assert 0.2 < np.mean(changed) < 0.4


def test_the_average_is_what_is_kept(tmp_path: Path, colours: Path) -> None:
    do(tiny_settings(colours, tmp_path / "out", epochs=1, ema=0.5, max_steps=3))
    path: list[dict[str, Tensor]] = []

    def say(line: str) -> None:
        if line.startswith("epoch"):
            path.append(final(tmp_path / "steps"))

    # the same three steps, each an epoch of its own, to see the weights after each
    take_step = loop.take_step
    states: list[dict[str, Tensor]] = []

    def watched(run: Any, step: int, parts: Any) -> Any:
        states.append({n: v.clone() for n, v in run.model.state_dict().items()})
        return take_step(run, step, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", watched)
        do(tiny_settings(colours, tmp_path / "steps", epochs=1, ema=0.5, max_steps=3), say)
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


def test_classes_are_drawn_alike(unequal: Path) -> None:
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
@pytest.mark.parametrize("trick", ["balanced_sampler", "class_weights"])
def test_an_unbalanced_set_gains(tmp_path: Path, trick: str) -> None:
    data = unbalanced_digits()
    scores = {}
    for on in (False, True):
        config = tiny_settings(
            "digits", tmp_path / str(on), model="kansformer_micro_patch4_8", epochs=6,
            batch_size=32, augment="none", **{trick: on},
        )  # fmt: skip
        train(config, data, lambda line: None)
        model = load_model(tmp_path / str(on) / "best.safetensors")
        assert data.test is not None
        test = PictureDataset(data.test, model.preprocessing)
        images = torch.stack([test[0, i][0] for i in range(len(test))])
        with torch.no_grad():
            scores[on] = balanced_accuracy_score(data.test.labels, model(images).argmax(-1))
    assert scores[True] > scores[False] + 0.02, scores


@pytest.mark.slow
def test_bf16_trains_as_well_as_float32(tmp_path: Path) -> None:
    accuracy = {}
    for amp in ("none", "bf16"):
        config = tiny_settings(
            "digits", tmp_path / amp, model="kansformer_micro_patch4_8", epochs=8, batch_size=64,
            augment="none", lr=3e-3, amp=amp,
        )  # fmt: skip
        accuracy[amp] = do(config)["test_acc1"]
    assert accuracy["none"] > 90
    assert abs(accuracy["bf16"] - accuracy["none"]) < 1, accuracy


def test_fp16s_overflow_is_no_bad_step(tmp_path: Path, colours: Path) -> None:
    lines: list[str] = []
    config = tiny_settings(colours, tmp_path / "out", epochs=4, amp="fp16")
    clip, left = loop.clip_gradients, iter(range(4))

    def overflowing(model: nn.Module, largest: float) -> Tensor:
        norm = clip(model, largest)
        return norm if next(left, None) is None else norm * float("inf")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "clip_gradients", overflowing)
        do(config, lines.append)
    assert not any("skipped" in line or "back to" in line for line in lines)
    saved = state(tmp_path / "out")
    assert saved["scaler"]["scale"] > 1
    assert saved["progress"]["history"][-1]["val_acc1"] > 60


def test_a_compiled_model_trains_alike(tmp_path: Path, colours: Path) -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    compile_ = nn.Module.compile
    for name, on in (("plain", False), ("compiled", True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Module, "compile", lambda self: compile_(self, backend=backend))
            do(tiny_settings(colours, tmp_path / name, epochs=1, compile=on))
        assert bool(calls) == on
    a, b = final(tmp_path / "plain"), final(tmp_path / "compiled")
    assert a.keys() == b.keys()
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-4


def test_patience_ends_a_run(tmp_path: Path, colours: Path) -> None:
    lines: list[str] = []
    config = tiny_settings(colours, tmp_path / "out", epochs=9, patience=2, lr=0.0)
    summary = do(config, lines.append)
    assert "no better for 2 epochs" in lines
    assert summary["epochs"] < 9
    assert summary["epochs"] - summary["best_epoch"] == 2
    again = do(replace(config, patience=3, resume=True))
    assert again["epochs"] - again["best_epoch"] == 3


def test_a_time_budget_ends_a_run_with_what_it_has(tmp_path: Path, colours: Path) -> None:
    lines: list[str] = []
    config = tiny_settings(colours, tmp_path / "out", epochs=10_000, time_budget=0.03)
    summary = do(config, lines.append)
    assert 0 < summary["epochs"] < 10_000
    assert any("time budget is spent" in line for line in lines)
    assert load_model(tmp_path / "out" / "best.safetensors")
    with pytest.raises(UserError, match="--time-budget must be"):
        tiny_settings(colours, "x", time_budget=-1.0)


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
    found = find_rate(model, config, Criterion(), [(images, labels)], ALONE)
    assert 1e-5 < found <= 1e-1
    assert checksum(dict(model.state_dict())) == before
    best = best_rate(model, config, Criterion(), [(images, labels)], CPU)
    assert best == pytest.approx(10 * found)


def sparse(config: TrainConfig) -> float:
    do(config)
    return sum(float(v.abs().sum()) for n, v in final(Path(str(config.output))).items()
               if n.endswith("spline_weight"))  # fmt: skip


def test_a_penalty_makes_splines_small(tmp_path: Path, colours: Path) -> None:
    sizes = [
        sparse(tiny_settings(colours, tmp_path / str(w), epochs=3, spline_penalty=w))
        for w in (0.0, 1e-3, 1e-1)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_calibrated_grids_span_the_activations(tmp_path: Path, colours: Path) -> None:
    def outside(folder: str, **changes: Any) -> list[float]:
        config = tiny_settings(colours, tmp_path / folder, epochs=1, max_steps=1, **changes)
        do(replace(config, lr=0.0))
        model = load_model(tmp_path / folder / "best.safetensors")
        shares: list[float] = []

        def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            x, k = layer.spline_inputs(inputs[0]), layer.spline_order
            low, high = layer.grid[:, k], layer.grid[:, -k - 1]
            shares.append(float(((x < low) | (x > high)).float().mean()))

        for layer in spline_layers(model):
            layer.register_forward_pre_hook(look)
        pictures = PictureDataset(load_data(str(colours)).train, model.preprocessing)
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
    tmp_path: Path, colours: Path, change: dict[str, Any], ffn: str
) -> None:
    settings = {"epochs": 4, "ffn": ffn, "ema": 0.9, **change}
    lines: list[str] = []
    do(tiny_settings(colours, tmp_path / "whole", **settings), lines.append)
    due = 1 if "refine_grid" in change else 3
    assert sum(line.startswith("grids") for line in lines) == due
    take_step, left = loop.take_step, iter(range(4))

    def stopping(*arguments: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", stopping)
        with pytest.raises(Stopped):  # in the second epoch, whose grids have changed already
            do(tiny_settings(colours, tmp_path / "parts", **settings))
    do(tiny_settings(colours, tmp_path / "parts", **settings, resume=True))
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    for key in ("model", "average", "optimiser"):
        assert checksum(whole[key]) == checksum(parts[key])
    model = load_model(tmp_path / "whole" / "best.safetensors")
    before = 5 if ffn == "kan" else 8
    after = 16 if "refine_grid" in change else before
    assert model.config.grid_size in (before, after)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["model"]["grid_size"] == after


def test_refinement_keeps_the_functions(tmp_path: Path, colours: Path) -> None:
    """With a rate of nothing, a grid of twice the size computes what it did."""
    for name, change in (("plain", None), ("finer", ((1, 10), (2, 20)))):
        do(tiny_settings(colours, tmp_path / name, epochs=3, lr=0.0, refine_grid=change))
    losses = [
        [json.loads(line)["val_loss"] for line in
         (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "finer")
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert final(tmp_path / "finer")["blocks.0.mlp.fc1.spline_weight"].shape[-1] == 23


def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    for changes in (
        {"shard": True, "amp": "fp16"}, {"shard": True, "refine_grid": ((1, 8),)},
        {"teacher_temperature": 0.0}, {"ema": 1.5}, {"accumulate": 0}, {"patience": -1},
        {"random_erasing": 2.0},
    ):  # fmt: skip
        with pytest.raises(UserError, match="--"):
            tiny_settings("digits", tmp_path, **changes)


def test_refinements_are_read(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, _, err = command("train", "--data-path", "digits", "--refine-grid", "ten")
    assert status == 2
    assert "EPOCH:SIZE" in err
    flags = "--epochs 2 --max-steps 1 --batch-size 8 --refine-grid 1:10 --output"
    status, out, _ = command("train", "--data-path", "digits", *flags.split(), tmp_path / "r")
    assert status == 0
    assert "refined to 10 intervals" in out


def test_schedules_have_all_their_steps() -> None:
    labels = np.zeros(100, dtype=np.int64)
    for batch, accumulate, world in itertools.product((3, 8), (1, 4), (1, 2)):
        sampler = TrainingSampler(labels, batch, accumulate=accumulate, world=world)
        assert sampler.steps == 100 // (batch * accumulate * world)
    assert TrainingSampler(labels, 64, accumulate=4).steps == 1
    batches = TrainingSampler(labels, 64, accumulate=4).batches(0)
    assert [len(batch) for batch in batches] == [64, 36]
    assert math.isclose(sum(map(len, batches)), 100)
