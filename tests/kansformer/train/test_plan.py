"""A plan is made of measured numbers, changes no bit of the run, and never takes more than is free.

Times and memory are given, not measured, where figures are checked.
"""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kansformer import memory
from kansformer.errors import JobFailed, Stopped
from kansformer.train import loop, measure, plan
from kansformer.train.measure import StepMemory, Times, combined, measure_memory, measure_time
from kansformer.train.plan import Plan, fewest_micro_batches, make_plan
from kansformer.train.run import Progress, Run
from kansformer.train.run_folder import checksum
from kansformer.train.state import collect_state
from tests.conftest import ROOT, tiny_settings
from tests.kansformer.train.runs import TRICKS, do, prepared, same, state, stop_after
from tests.processes import run_ranks

TIMES = Times(step=1.0, evaluation=10.0, saving=1.0, test=5.0)
MEMORY = StepMemory(fixed=1000, pixels=10, activations=100, free=10**6)


def a_plan(**changes: Any) -> Plan:
    settings = {"times": TIMES, "epochs": 10, "steps": 90, "progress": Progress()}
    return Plan(**{**settings, **changes})


def row(seconds: float) -> dict[str, float]:
    return {"seconds": seconds}


def test_a_forecast_adds_up() -> None:
    whole = a_plan()
    assert whole.epoch_seconds == 100
    assert whole.seconds == 1000
    assert whole.seconds_left == 1000 + 10 + 5
    half = a_plan(progress=Progress(epoch=5, total_seconds=480.0))
    assert half.seconds == 480 + 500
    assert half.seconds_left == 500 + 5 + 5
    inside = a_plan(progress=Progress(epoch=5, step=45, total_seconds=480.0))
    assert inside.seconds == 480 + 500 - 45


def test_a_time_budget_limits_it() -> None:
    assert a_plan(budget=2000.0).lines() == a_plan().lines()
    short = a_plan(budget=250.0)
    assert short.seconds == 250
    assert "--time-budget ends it after about 25% of its epochs" in short.lines()[-1]
    assert short.time_left(Progress(total_seconds=240.0)) == 10 + 5
    assert short.time_left(Progress(total_seconds=260.0)) == 5
    used_up = a_plan(budget=100.0, progress=Progress(epoch=2, total_seconds=200.0))
    assert used_up.seconds == 200


def test_the_time_left_follows_what_was_measured() -> None:
    slow = a_plan()
    assert slow.time_left(Progress()) == slow.seconds_left
    half = Progress(step=45, seconds=90.0)  # twice as slow as forecast
    assert slow.time_left(half) == 45 * 2 + 10 + 9 * 190 + 10 * 1 + 5
    later = Progress(epoch=8, history=[row(100.0), row(50.0)])  # the last epoch counts
    assert slow.time_left(later) == 2 * 50 + 2 * 1 + 5
    assert slow.time_left(Progress(epoch=10, history=[row(50.0)])) == 5


def test_the_lines_of_a_plan() -> None:
    first, second = a_plan(
        memory=StepMemory(0, 0, 50_000_000, 21_900_000_000),
        batch_size=62,
        advice=(("--img-size 98", 540.0), ("--tune head", 60.0)),
    ).lines()
    assert first == "memory  a step takes 3.1 GB, 21.9 GB are free"
    assert second == (
        "time    1.00 s per step: 2 min per epoch, about 17 min in all; to be faster: --img-size 98"
        " (about 9 min), --tune head (about 60 s)"
    )
    assert len(a_plan().lines()) == 1
    unknown, _ = a_plan(micro_batches=4).lines()
    assert unknown == "memory  each batch is split into 4 micro-batches"


def test_the_fewest_micro_batches_that_fit() -> None:
    assert MEMORY.needed(64) == 1000 + 640 + 6400
    assert MEMORY.needed(64, 4) == 1000 + 640 + 1600
    needed = {n: MEMORY.needed(64, n) for n in (1, 2, 4, 8, 16, 32, 64)}
    for micro_batches, size in needed.items():
        enough = replace(MEMORY, free=round(size / plan.USABLE) + 1)
        assert fewest_micro_batches(enough, 64) == micro_batches
        short = replace(MEMORY, free=round(size / plan.USABLE) - 2)
        assert fewest_micro_batches(short, 64) == (
            2 * micro_batches if micro_batches < 64 else None
        )
    assert fewest_micro_batches(MEMORY, 64, at_least=4) == 4, "a resumed run keeps its number"


def test_computing_and_reading_share_the_cores_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert combined(10.0, 4.0, workers=0, on_cpu=True) == 14
    assert combined(10.0, 4.0, workers=2, on_cpu=True) == 12
    assert combined(10.0, 40.0, workers=1, on_cpu=True) == 40
    assert combined(10.0, 4.0, workers=2, on_cpu=False) == 10
    assert combined(1.0, 4.0, workers=8, on_cpu=False) == 2


def everything(run: Run) -> str:
    """A hash of all that the rest of a run depends on."""
    numbers = np.random.get_state()
    return checksum({
        "state": collect_state(run),
        "random": [torch.get_rng_state(), torch.from_numpy(np.asarray(numbers[1]).astype(np.int64)),
                   numbers[2:], random.getstate()],
        "modes": [module.training for module in run.model.modules()],
        "gradients": [p.grad for p in run.model.parameters()],
        "next": [run.sampler.epoch, run.sampler.first_step],
    })  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        TRICKS,
        {"accumulate": 2, "batch_size": 4, "spline_penalty": 0.1, "clip_grad": 0.1},
        {"amp": "bf16", "batch_size": 1, "workers": 2},
        {"freeze_layers": True, "unfreeze_every": 1, "epochs": 4},
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_measuring_leaves_the_run_as_it_was_to_the_bit(
    tmp_path: Path, colors: Path, trained: Path, changes: dict[str, Any], resume: bool
) -> None:
    if "freeze_layers" in changes:
        changes = {**changes, "weights": str(trained / "best.safetensors")}
    settings = tiny_settings(colors, tmp_path / "out", **changes)
    if resume:
        with pytest.raises(Stopped):
            stop_after(4, lambda: do(settings))
        settings = replace(settings, resume=True)
    run = prepared(settings)
    with torch.no_grad():  # zeros have a sign
        next(run.model.parameters()).view(-1)[:2] = torch.tensor([-0.0, 0.0])
    first_images = next(iter(run.train_loader))[0]
    before = everything(run)
    make_plan(run)
    assert everything(run) == before
    assert run.wrapped_model is None
    assert torch.equal(next(iter(run.train_loader))[0], first_images)


def test_a_plan_changes_no_bit_of_the_training(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(tiny_settings(colors, tmp_path / "with", **TRICKS))
    monkeypatch.setattr(loop, "make_plan", lambda run: a_plan(epochs=3, steps=run.steps))
    do(tiny_settings(colors, tmp_path / "without", **TRICKS))
    assert same(state(tmp_path / "with"), state(tmp_path / "without"))


def test_measured_memory_extrapolates(tmp_path: Path, colors: Path) -> None:
    """From one and two pictures to eight."""
    run = prepared(tiny_settings(colors, tmp_path / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SURE", 0.0)
        measured = measure_memory(run)
    assert measured is not None
    with measure.unchanged(run):
        peaks = [measure.peak_of_step(run, pictures) for pictures in (1, 8)]
    assert peaks[0] is not None
    assert peaks[1] is not None
    growth = measured.needed(8, 1) - measured.needed(1, 1) - 7 * measured.pixels
    assert growth == pytest.approx(measure.HEAP * (peaks[1] - peaks[0]), rel=0.1)
    weights = sum(p.nbytes for p in run.model.parameters())
    assert measure.bytes_to_come(run) == 4 * weights  # gradient, two moments, initial state
    run.resumed = True
    assert measure.bytes_to_come(run) == 3 * weights


def test_measuring_stops_where_it_takes_its_share(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = measure.compute_gradient

    def watched(run: Run, step: int, batches: Any) -> Any:
        sizes.append(len(batches[0][0]))
        return original(run, step, batches)

    monkeypatch.setattr(measure, "compute_gradient", watched)
    run = prepared(tiny_settings(colors, tmp_path / "out"))
    ticks = iter(range(10**6))
    slow = measure_time(run, clock=lambda: 10.0 * next(ticks))
    assert sizes == [2]  # ten seconds are enough to extrapolate from
    assert slow.step >= 8 / 2 * 10
    sizes.clear()
    run.config = replace(run.config, epochs=10_000)
    ticks = iter(range(10**6))
    measure_time(run, clock=lambda: 0.1 * next(ticks))
    assert sizes == [2, *[8] * (1 + measure.REPEATS)]


def limited(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(memory, "limits", lambda: {"this test": free})


def needs_of(run: Run) -> StepMemory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SURE", 0.0)
        measured = measure_memory(run)
    assert measured is not None
    return measured


def test_short_memory_splits_batches_and_a_resumed_run_keeps_the_number(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 2, "batch_size": 8}
    needs = needs_of(prepared(tiny_settings(colors, tmp_path / "out", **settings)))
    free = int(needs.needed(8, 4) / plan.USABLE) + 50_000
    limited(monkeypatch, free)
    lines: list[str] = []
    whole = tiny_settings(colors, tmp_path / "whole", **settings)
    evaluated: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        original = loop.evaluate

        def watched(model: Any, batches: Any, *arguments: Any) -> Any:
            batches = list(batches)
            evaluated.extend(len(images) for images, _ in batches)
            return original(model, batches, *arguments)

        patch.setattr(loop, "evaluate", watched)
        do(whole, lines.append)
    assert max(evaluated) == 2
    assert sum(evaluated) == 2 * 6, "every picture in each of two epochs"
    assert any("each batch is split into 4 micro-batches" in line for line in lines)
    parts = tiny_settings(colors, tmp_path / "parts", **settings)
    with pytest.raises(Stopped):
        stop_after(2, lambda: do(parts))
    assert state(tmp_path / "parts")["micro_batches"] == 4
    limited(monkeypatch, 10**12)  # more would fit now, with other bits
    do(replace(parts, resume=True))
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_what_does_not_fit_is_refused_with_what_would(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(colors, tmp_path / "out", img_size=128)
    run = prepared(settings)
    needs = needs_of(run)
    limited(monkeypatch, int(needs.needed(1) / plan.USABLE) - 10_000)
    with pytest.raises(JobFailed, match=r"one picture of 128 x 128 pixels takes .* free \(this"):
        do(settings)
    with pytest.raises(JobFailed, match=r"choose (--batch-size \d or )?--img-size \d+"):
        do(settings)
    limited(monkeypatch, 1_000_000)
    with pytest.raises(JobFailed, match=r"gradient of .* choose a smaller --model"):
        do(settings)
    assert not (tmp_path / "out").exists()
    assert "\n" not in plan.refusal(run, needs)


def test_a_long_run_gets_advice_that_the_user_has_not_taken(
    tmp_path: Path, colors: Path, trained: Path
) -> None:
    weights = str(trained / "best.safetensors")
    slow = a_plan(times=Times(step=100.0, evaluation=10.0))
    run = prepared(tiny_settings(colors, tmp_path / "out", weights=weights, img_size=None))
    assert [flags for flags, _ in plan.faster(run, slow)] == ["--tune head"]  # 16 pixels are few
    run = prepared(tiny_settings(colors, tmp_path / "out", img_size=None))
    assert plan.faster(run, slow) == []
    run.model.config = replace(run.model.config, img_size=160)
    ((flags, seconds),) = plan.faster(run, slow)
    assert flags == "--img-size 56" or int(flags.split()[-1]) < 160
    assert seconds < 0.5 * slow.seconds_left
    run.config = replace(run.config, img_size=160)
    assert plan.faster(run, slow) == []
    frozen = tiny_settings(colors, tmp_path / "out", weights=weights, freeze_layers=True)
    assert plan.faster(prepared(frozen), slow) == []


def test_the_forecast_is_in_the_summary(tmp_path: Path, colors: Path) -> None:
    lines: list[str] = []
    summary = do(tiny_settings(colors, tmp_path / "out", epochs=2), lines.append)
    assert summary["forecast_seconds"] > 0
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert saved["forecast_seconds"] == summary["forecast_seconds"]
    first, second = (line for line in lines if line.startswith("epoch"))
    assert ", about" in first
    assert "left" in first
    assert "left" not in second
    assert any("(forecast:" in line for line in lines if line.startswith("done"))


def test_all_ranks_have_the_plan_of_the_slowest(tmp_path: Path, colors: Path) -> None:
    def work() -> None:
        import os

        original = loop.make_plan

        def kept(run: Run) -> Plan:
            made = original(run)
            path = tmp_path / f"{run.ranks.rank}.json"
            path.write_text(json.dumps([made.times.step, made.micro_batches, repr(made.memory)]))
            return made

        if os.environ["RANK"] == "1":
            memory.limits = lambda: {"this test": 2 * 30_000_000}
        loop.make_plan = kept
        do(tiny_settings(colors, tmp_path / "out", epochs=1, batch_size=4))

    assert run_ranks(work, log=tmp_path / "log") == [0, 0], (tmp_path / "log.0").read_text()
    plans = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert plans[0] == plans[1]


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads /proc")
def test_too_little_address_space_ends_in_one_line(tmp_path: Path, colors: Path) -> None:
    """Nothing is killed, even if memory is short before a plan is made."""
    code = (
        "import resource, sys, torch; from kansformer import memory; from kansformer.errors import"
        " run_command; from kansformer.commands import train;"
        " used = memory._numbers(memory.PROCESS / 'status')['VmSize'] * 1024;"
        " resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2);"
        " sys.exit(run_command(train.main))"
    )
    arguments = ["--data-path", colors, "--model", "kansformer_base_patch16_224", "--output",
                 tmp_path / "out", "--no-report", "--workers", "0"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]  # torch may have logged what it does without
    assert line.startswith("failed: ")
    assert "memory" in line
