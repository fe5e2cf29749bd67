"""The comparison of twins: pairs, intervals, and a table with what was run."""

import json
import sys
from pathlib import Path

import pytest
from scipy import stats

from kansformer import compare
from kansformer.errors import run_command
from tests.conftest import write_folder

SHORT = [
    "--model", "vit_micro_patch8_16", "--augment", "small", "--epochs", "1", "--batch-size", "8",
    "--warmup-epochs", "0", "--workers", "0", "--device", "cpu", "--no-report",
]  # fmt: skip


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    return run_command(compare.main)


def test_twins_are_trained_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "colors")
    arguments = ["--data-path", data, "--output", tmp_path / "out", "--seeds", 2, *SHORT]
    monkeypatch.chdir(tmp_path)
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
    assert (tmp_path / "out" / "compare.md").read_text() in printed
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")

    assert call(monkeypatch, *arguments) == 2  # nothing is overwritten by accident
    assert "holds an earlier run" in capsys.readouterr().err
    (tmp_path / "out" / "mlp-seed1" / "last.pt").unlink()  # interrupted before its first state
    assert call(monkeypatch, *arguments, "--resume") == 0
    again = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [run["accuracy"] for run in again["runs"]] == [
        run["accuracy"] for run in results["runs"]
    ]
    assert call(monkeypatch, *arguments, "--resume", "--epochs", 2) == 2
    assert "--epochs is 2 now and was 1" in capsys.readouterr().err


def run(arm: str, seed: int, accuracy: float) -> dict[str, object]:
    return {"arm": arm, "seed": seed, "accuracy": accuracy, "parameters": 10,
            "flops_per_image": 20, "seconds": 3.0}  # fmt: skip


def test_intervals_are_scipys_for_pairs() -> None:
    kan, mlp = [91.0, 92.5, 90.0, 93.0], [90.0, 92.0, 90.5, 91.0]
    runs = [run("kan", s, v) for s, v in enumerate(kan)]
    runs += [run("mlp", s, v) for s, v in reversed(list(enumerate(mlp)))]  # paired by seed
    first, second = compare.summarize(runs)
    expected = stats.ttest_rel(kan, mlp).confidence_interval(0.95)
    assert first["interval"] == pytest.approx((expected.low, expected.high))
    assert first["difference"] == pytest.approx(0.75)
    assert first["spread"] == pytest.approx(stats.tstd(kan))
    assert second["interval"] is None
    assert compare.summarize(runs[:1] + runs[-1:])[0]["interval"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", 0], "--seeds must be at least 1"),
        (["--arms", "kan", "group-kan"], "--arms must name mlp"),
        (["--ffn", "kan"], "--ffn is chosen by --arms"),
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
