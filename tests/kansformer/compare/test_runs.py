"""The runs of a comparison: what is trained, kept, resumed and refused."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kansformer.compare import __main__ as command
from kansformer.compare import runs
from kansformer.compare.finished import RECORD, WEIGHTS, read_record
from kansformer.errors import JobFailed, run_command
from kansformer.train import loop
from kansformer.train.config import TrainConfig
from tests.conftest import write_folder
from tests.kansformer.pretrained import foreign

SHORT = [
    "--model", "vit_micro_patch8_16", "--augment", "small", "--epochs", "1", "--batch-size", "8",
    "--warmup-epochs", "0", "--workers", "0", "--device", "cpu", "--no-report",
]  # fmt: skip
PAIR = ["--arms", "group-kan", "mlp", "--seeds", 2]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    return run_command(command.main)


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def arguments(tmp_path: Path) -> list[object]:
    """A short comparison of two arms with two seeds."""
    data = write_folder(tmp_path / "colors")
    return ["--data-path", data, "--output", tmp_path / "out", *PAIR, *SHORT]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The settings with which `train` is called, in order."""
    calls: list[TrainConfig] = []
    train = runs.train

    def noting(config: TrainConfig, *rest: Any) -> dict[str, Any]:
        calls.append(config)
        return train(config, *rest)

    monkeypatch.setattr(runs, "train", noting)
    return calls


def names(calls: list[TrainConfig]) -> list[str]:
    return [Path(str(config.output)).name for config in calls]


def figures(folder: Path) -> list[tuple[str, int, float, float]]:
    """What a comparison measured."""
    results = json.loads((folder / "compare.json").read_text())["runs"]
    return [(run["arm"], run["seed"], run["accuracy"], run["val_loss"]) for run in results]


def weights_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for name in WEIGHTS for p in folder.rglob(name))


def interrupt(*arguments: object) -> None:
    """Ends the command as a kill would, without any of its own clearing up."""
    raise KeyboardInterrupt


def test_twins_are_trained_and_compared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trained: list[TrainConfig],
) -> None:
    data = write_folder(tmp_path / "colors")
    arguments = ["--data-path", data, "--output", tmp_path / "out", "--seeds", 2, *SHORT]
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("kan", "group-kan", "mlp")
    ]
    baseline = results["rows"][2]["parameters"]
    for row in results["rows"]:
        assert row["n"] == 2
        assert abs(row["parameters"] / baseline - 1) < 0.02
        assert f"| {row['arm']} | 2 | {row['mean']:.2f} |" in printed
    assert "best validation accuracy in %, 6 pictures, 1 epoch," in printed
    assert "6 pictures: one is 16.67 points." in printed
    assert (tmp_path / "out" / "compare.md").read_text() in printed
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "6 runs: kan, group-kan, mlp, each with seeds 0 to 1; output in" in printed
    assert "1 of 6 runs finished, this one in" in printed
    assert printed.count(" left\n") == 5
    assert "next:" not in printed  # there are no weights to predict with

    assert call(monkeypatch, *arguments) == 2  # nothing is overwritten by accident
    assert "holds an earlier run" in capsys.readouterr().err
    assert len(trained) == 6
    assert call(monkeypatch, *arguments, "--resume") == 0
    assert len(trained) == 6
    assert figures(tmp_path / "out") == [
        (run["arm"], run["seed"], run["accuracy"], run["val_loss"]) for run in results["runs"]
    ]
    assert call(monkeypatch, *arguments, "--resume", "--epochs", 2) == 2
    assert "kan, seed 0: --epochs is 2 now and was 1" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--resume", "--seeds", 3) == 0
    assert names(trained[6:]) == ["kan-seed2", "group-kan-seed2", "mlp-seed2"]


def test_figures_stay_and_weights_go(
    tmp_path: Path,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments) == 0
    out = tmp_path / "out"
    assert weights_in(out) == []
    for run in ("group-kan-seed0", "group-kan-seed1", "mlp-seed0", "mlp-seed1"):
        for name in ("summary.json", "config.json", "metrics.jsonl", "curves.png", RECORD):
            assert (out / run / name).is_file()
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert f"; {size / 1e6:.1f} MB in all" in capsys.readouterr().out

    assert call(monkeypatch, *arguments, "--overwrite", "--keep-weights") == 0
    kept = weights_in(out)
    for run in ("group-kan-seed0", "group-kan-seed1", "mlp-seed0", "mlp-seed1"):
        assert {f"{run}/last.pt", f"{run}/best.safetensors"} <= set(kept)
    assert call(monkeypatch, *arguments, "--resume", "--keep-weights") == 0
    assert weights_in(out) == kept
    assert call(monkeypatch, *arguments, "--resume") == 0
    assert weights_in(out) == []


def test_an_interrupted_run_continues_and_finished_ones_do_not(
    tmp_path: Path,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    trained: list[TrainConfig],
) -> None:
    arguments += ["--epochs", 2]
    assert call(monkeypatch, *arguments) == 0
    whole = figures(tmp_path / "out")
    arguments[3] = tmp_path / "stopped"
    steps = iter(range(3 * 2 * 3 - 1))  # two epochs of three steps; the last step of the third run
    compute_gradient = loop.compute_gradient

    def stopping(*given: Any) -> Any:
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_gradient(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_gradient", stopping)
        assert call(monkeypatch, *arguments) == 143
    stopped = tmp_path / "stopped"
    assert {Path(name).parent.name for name in weights_in(stopped)} == {"group-kan-seed1"}
    trained.clear()
    assert call(monkeypatch, *arguments, "--resume") == 0
    assert names(trained) == ["group-kan-seed1", "mlp-seed1"]
    assert [config.resume for config in trained] == [True, False]
    assert figures(stopped) == whole
    assert weights_in(stopped) == []


@pytest.mark.parametrize("step", ["record", "remove_weights"])
def test_a_kill_after_training_loses_and_repeats_nothing(
    step: str,
    tmp_path: Path,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    trained: list[TrainConfig],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runs, step, interrupt)
        assert call(monkeypatch, *arguments) == 130
    first = tmp_path / "out" / "group-kan-seed0"
    assert (first / "summary.json").is_file()
    assert weights_in(first)
    before = (first / "metrics.jsonl").read_text()
    assert (read_record(first) is None) == (step == "record")
    trained.clear()
    assert call(monkeypatch, *arguments, "--resume") == 0
    assert (first / "metrics.jsonl").read_text() == before  # with its times: not trained again
    expected = ["mlp-seed0", "group-kan-seed1", "mlp-seed1"]
    assert names(trained)[-3:] == expected
    if step == "record":  # evaluated again
        assert names(trained) == ["group-kan-seed0", *expected]
        assert trained[0].resume
    assert weights_in(tmp_path / "out") == []


def test_the_record_of_a_replaced_run_does_not_count(
    tmp_path: Path,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    trained: list[TrainConfig],
) -> None:
    assert call(monkeypatch, *arguments) == 0
    with monkeypatch.context() as patch:
        patch.setattr(runs, "record", interrupt)
        assert call(monkeypatch, *arguments, "--overwrite", "--lr", "0.1") == 130
    assert (tmp_path / "out" / "group-kan-seed0" / RECORD).is_file()
    assert read_record(tmp_path / "out" / "group-kan-seed0") is None


def test_other_pictures_are_refused_before_training(
    tmp_path: Path,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trained: list[TrainConfig],
) -> None:
    assert call(monkeypatch, *arguments) == 0
    (tmp_path / "colors" / "red" / "red 3.png").unlink()
    trained.clear()
    capsys.readouterr()
    assert call(monkeypatch, *arguments, "--resume", "--seeds", 3) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: group-kan, seed 0: ")
    assert "classes or pictures are not those of the run" in line
    assert trained == []


def test_a_later_run_that_exists_is_refused_before_training(
    tmp_path: Path,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    trained: list[TrainConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "out" / "mlp-seed1").mkdir(parents=True)
    (tmp_path / "out" / "mlp-seed1" / "notes.txt").write_text("mine")
    assert call(monkeypatch, *arguments) == 2
    assert "mlp-seed1: holds an earlier run" in capsys.readouterr().err
    assert trained == []


def test_a_failing_run_is_named_and_the_others_are_kept(
    tmp_path: Path,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = runs.train

    def failing(config: TrainConfig, *rest: Any) -> dict[str, Any]:
        if config.ffn == "kan":
            raise JobFailed("the loss is not finite; lower --lr")
        return train(config, *rest)

    monkeypatch.setattr(runs, "train", failing)
    arguments = [*arguments, "--arms", "group-kan", "kan", "mlp"]
    assert call(monkeypatch, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "failed: kan, seed 0: the loss is not finite; lower --lr; 1 finished run kept: --resume"
        " continues with the same settings or with fewer --arms"
    )
    assert call(monkeypatch, *arguments, "--resume", "--arms", "group-kan", "mlp") == 0
    assert [arm for arm, *_ in figures(tmp_path / "out")] == ["group-kan", "mlp"] * 2


def test_a_loss_that_is_not_finite_ends_with_one_line(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bad(*given: Any) -> Any:
        return torch.tensor(float("nan")), torch.tensor(float("nan")), 8

    monkeypatch.setattr(loop, "compute_gradient", bad)
    assert call(monkeypatch, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("failed: group-kan, seed 0: the loss or gradient in epoch 1")
    assert "--overwrite starts over" in line


def test_a_pretrained_vit_with_both_kinds_of_blocks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trained: list[TrainConfig],
) -> None:
    """Options that concern splines stop no MLP, and all runs take the size of the first one."""
    for split, first_seed, count in (("train", 0, 8), ("val", 100, 3), ("test", 200, 3)):
        write_folder(tmp_path / "photos" / split, count, first_seed)
    weights = foreign.timm_vit(tmp_path / "vit.pth").path
    train = runs.train

    def choosing(config: TrainConfig, *rest: Any) -> dict[str, Any]:
        """As if training chose size and batch by itself where no size is given."""
        assert config.pool is None
        return train(
            config if config.img_size else replace(config, img_size=16, batch_size=4), *rest
        )

    monkeypatch.setattr(runs, "train", choosing)
    splines = ["--grid-size", 4, "--calibrate-grid", "--spline-lr", 2, "--spline-decay", 0.01,
               "--spline-penalty", 0.001, "--groups", 4]  # fmt: skip
    arguments = ["--data-path", "photos", "--weights", weights, "--output", "out", "--arms",
                 "group-kan", "mlp", "--seeds", 3, *splines, *SHORT[4:6], *SHORT[8:]]  # fmt: skip
    assert call(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert "test accuracy in %, 9 pictures" in printed
    assert "- group-kan: with 3 seeds these runs could have" in printed or "all equal" in printed
    results = json.loads(Path("out/compare.json").read_text())
    assert {run["model"]["img_size"] for run in results["runs"]} == {16}
    assert [config.batch_size for config in trained] == [4] * 6
    shared = [
        {name: value for name, value in config.to_dict().items()
         if name not in ("ffn", "seed", "output")}
        for config in trained
    ]  # fmt: skip
    assert all(settings == shared[0] for settings in shared)
    assert weights_in(Path("out")) == []
    assert weights.is_file()
    assert call(monkeypatch, *arguments, "--resume") == 0
    assert len(trained) == 6


def test_an_mlp_has_no_splines_to_tune() -> None:
    flags = {"weights": "x.pth", "tune": "head,splines", "lr": 0.1, "seed": 5}
    kan, mlp = runs.flags_of(("kan", 7), flags), runs.flags_of(("mlp", 7), flags)
    assert (kan["tune"], mlp["tune"]) == ("head,splines", "head")
    assert kan["seed"] == mlp["seed"] == 7
    assert flags["tune"] == "head,splines"


def test_torchrun_is_refused(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(monkeypatch, *arguments) == 2
    assert "without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", 0], "--seeds must be at least 1"),
        (["--arms", "kan", "group-kan"], "--arms must name mlp"),
        (["--ffn", "kan"], "--ffn is chosen by --arms"),
        (["--tune", "splines"], "leaves the MLP nothing to train"),
        (["--data-path", "nowhere"], "nowhere"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "--data-path", "digits", *arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
