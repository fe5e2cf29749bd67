"""A time budget shortens the schedule: when time is up, the learning rate is at its end."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kansformer.errors import Stopped
from kansformer.train import loop
from kansformer.train.optimizer import learning_rate
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final, state, stop_after
from tests.processes import run_ranks

STEPS = 3  # of an epoch
SETTINGS: dict[str, Any] = {"epochs": 20, "lr": 0.01, "lrf": 0.01, "warmup_epochs": 2.0}
HALF = 30.0  # minutes, at one for each step


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on which each step takes one minute and all else no time; the rate of each step."""
    compute_gradient, now, seen = loop.compute_gradient, [0.0], []

    def timed(run: Any, *arguments: Any) -> Any:
        result = compute_gradient(run, *arguments)
        now[0] += 60.0
        seen.append(learning_rate(run.optimizer))
        return result

    monkeypatch.setattr(loop, "compute_gradient", timed)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return seen


def test_the_rate_is_at_its_end_when_time_is_up(
    tmp_path: Path, colors: Path, minutes: list[float]
) -> None:
    lines: list[str] = []
    do(tiny_settings(colors, tmp_path / "half", time_budget=HALF, **SETTINGS), lines.append)
    half = list(minutes)
    assert "stopped early: --time-budget is used up" in lines
    assert HALF <= len(half) <= HALF + 1
    peak = half.index(max(half))
    assert peak <= len(half) / 5
    assert max(half) == pytest.approx(0.01, rel=0.02)
    assert half[peak:] == sorted(half[peak:], reverse=True)
    assert half[-1] == pytest.approx(0.01 * 0.01, rel=0.5)
    # the shape is that of the whole run: every second of its rates
    minutes.clear()
    do(tiny_settings(colors, tmp_path / "whole", **SETTINGS))
    assert half[:30] == pytest.approx(minutes[::2], rel=1e-6)


def test_a_budget_that_suffices_changes_no_bit(
    tmp_path: Path, colors: Path, minutes: list[float]
) -> None:
    settings = {**SETTINGS, "epochs": 4}
    do(tiny_settings(colors, tmp_path / "with", time_budget=99.0, **settings))
    with_budget = list(minutes)
    minutes.clear()
    do(tiny_settings(colors, tmp_path / "without", **settings))
    assert with_budget == minutes
    ours, theirs = final(tmp_path / "with"), final(tmp_path / "without")
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_resumed_run_continues_its_clock(
    tmp_path: Path, colors: Path, minutes: list[float]
) -> None:
    settings = {**SETTINGS, "time_budget": HALF}
    do(tiny_settings(colors, tmp_path / "whole", **settings))
    whole = list(minutes)
    minutes.clear()
    with pytest.raises(Stopped):
        stop_after(8, lambda: do(tiny_settings(colors, tmp_path / "parts", **settings)))
    do(tiny_settings(colors, tmp_path / "parts", **settings, resume=True))
    assert minutes == whole
    rows = [state(tmp_path / name)["progress"]["history"] for name in ("whole", "parts")]
    assert [row["lr"] for row in rows[0]] == [row["lr"] for row in rows[1]]


def test_lost_time_counts(
    tmp_path: Path, colors: Path, minutes: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restoring a state does not turn back the clock."""
    compute_gradient, bad = loop.compute_gradient, iter(range(10, 13))
    next_bad = [next(bad)]

    def failing(run: Any, *arguments: Any) -> Any:
        total, norm, count = compute_gradient(run, *arguments)
        if len(minutes) - 1 == next_bad[0]:
            next_bad[0] = next(bad, -1)
            return total * float("nan"), norm, count
        return total, norm, count

    monkeypatch.setattr(loop, "compute_gradient", failing)
    lines: list[str] = []
    do(tiny_settings(colors, tmp_path / "out", time_budget=HALF, **SETTINGS), lines.append)
    assert any("back to epoch" in line for line in lines)
    assert HALF <= len(minutes) <= HALF + 1


def test_ranks_share_the_first_ones_clock(tmp_path: Path, colors: Path) -> None:
    def work() -> None:
        import os

        compute_gradient, now, seen = loop.compute_gradient, [0.0], []
        slow = 60.0 if os.environ["RANK"] == "0" else 7.0

        def timed(run: Any, *arguments: Any) -> Any:
            result = compute_gradient(run, *arguments)
            now[0] += slow
            seen.append(learning_rate(run.optimizer))
            return result

        loop.compute_gradient = timed
        loop.time = SimpleNamespace(monotonic=lambda: now[0])
        do(tiny_settings(colors, tmp_path / "out", batch_size=4, time_budget=9.0, **SETTINGS))
        (tmp_path / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))

    assert run_ranks(work, log=tmp_path / "log") == [0, 0], (tmp_path / "log.0").read_text()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert 9 <= len(first) <= 10
