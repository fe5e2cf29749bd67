"""A run survives kills, signals, bad numbers and a full disk, and continues with the same bits."""

import json
import os
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from kansformer.checkpoint import load_model
from kansformer.data import PictureDataset, load_data
from kansformer.errors import JobFailed, Stopped, UserError
from kansformer.train import loop, train
from kansformer.train.config import TrainConfig
from kansformer.train.configure import configure
from kansformer.train.run_folder import checksum
from tests.conftest import tiny_settings
from tests.kansformer.data.sick import make_sick
from tests.kansformer.data.test_sources import fingerprint
from tests.kansformer.train.runs import TRICKS, do, same, state, stop_after
from tests.processes import start, status_of


def kill_at_step(number: int) -> None:
    """Kills this process before the step of that number, counted from 0."""
    compute_gradient, left = loop.compute_gradient, iter(range(number))

    def deadly(*arguments: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute_gradient(*arguments)

    loop.compute_gradient = deadly


def kill_in_save(number: int) -> None:
    """Kills this process half way through writing the state of that number, counted from 1."""
    save, left = torch.save, iter(range(number - 1))

    def deadly(contents: Any, file: Any) -> None:
        save(contents, file)
        if next(left, None) is None:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = deadly


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_three_times_and_resumed_is_never_killed(
    tmp_path: Path, colors: Path, workers: int
) -> None:
    settings = {"epochs": 4, "workers": workers, "save_minutes": 0.0, **TRICKS}
    whole = tiny_settings(colors, tmp_path / "whole", **settings)
    assert status_of(start(lambda: do(whole))) == 0
    step = random.Random(workers).randint(1, 2)  # of an epoch of 3 steps
    for resume, die, number in (
        (False, kill_at_step, 3 + step),  # in the middle of the second epoch
        (True, kill_in_save, 2),
        (True, kill_at_step, 1),
    ):
        config = tiny_settings(colors, tmp_path / "parts", **settings, resume=resume)

        def work(config: TrainConfig = config, die: Any = die, number: int = number) -> None:
            die(number)
            do(config)

        assert status_of(start(work)) == -signal.SIGKILL
    saved = state(tmp_path / "parts")["progress"]
    assert saved["epoch"] in (1, 2)
    last = tiny_settings(colors, tmp_path / "parts", **settings, resume=True)
    log = tmp_path / "log"
    assert status_of(start(lambda: do(last), log)) == 0
    assert f"resumed after epoch {saved['epoch']}" in log.read_text()
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))
    for name in ("parts", "whole"):
        assert not list((tmp_path / name).glob(".*")), "temporary files are left"
    rows = [
        [{k: row[k] for k in ("epoch", "train_loss", "val_loss", "val_acc1", "lr")}
         for row in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())]
        for name in ("parts", "whole")
    ]  # fmt: skip
    assert rows[0] == rows[1]
    best = [load_model(tmp_path / name / "best.safetensors") for name in ("parts", "whole")]
    assert checksum(dict(best[0].state_dict())) == checksum(dict(best[1].state_dict()))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("where", ["compute_gradient", "evaluate"])
def test_a_signal_saves_and_leaves(
    tmp_path: Path, colors: Path, where: str, number: int, status: int
) -> None:
    settings = {"epochs": 3, **TRICKS}
    do(tiny_settings(colors, tmp_path / "whole", **settings))

    def signalled() -> None:
        original, left = getattr(loop, where), iter(range(1))

        def patched(*arguments: Any) -> Any:
            if next(left, None) is None:
                os.kill(os.getpid(), number)
            return original(*arguments)

        setattr(loop, where, patched)
        do(tiny_settings(colors, tmp_path / "parts", **settings))

    log = tmp_path / "log"
    assert status_of(start(signalled, log)) == status
    stopped = {"compute_gradient": "epoch 1, step 2", "evaluate": "epoch 2, step 3"}[where]
    assert f"stopped at {stopped}; the state is saved in" in log.read_text()
    do(tiny_settings(colors, tmp_path / "parts", **settings, resume=True))
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_the_second_interrupt_leaves_at_once(tmp_path: Path, colors: Path) -> None:
    def interrupted() -> None:
        def patched(*arguments: Any) -> Any:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("still here")

        loop.compute_gradient = patched
        do(tiny_settings(colors, tmp_path / "out"))

    assert status_of(start(interrupted)) == 130
    assert not (tmp_path / "out" / "last.pt").exists()


def test_handlers_are_put_back(tmp_path: Path, colors: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    do(tiny_settings(colors, tmp_path / "out", epochs=1, max_steps=1))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_picture_that_is_not_finite_is_named_and_its_step_skipped(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = PictureDataset.__getitem__

    def planted(self: PictureDataset, key: tuple[int, int]) -> Any:
        tensor, label = get(self, key)
        bad = self.pictures.name(key[1]).endswith("red 4.png")
        return (tensor * float("nan") if bad else tensor), label

    monkeypatch.setattr(PictureDataset, "__getitem__", planted)
    lines: list[str] = []
    # validation takes others; see that the planted picture is in training
    data = load_data(str(colors)).with_validation(0.2, 0)
    assert any(name.endswith("red 4.png") for name in data.train.items)
    config = tiny_settings(colors, tmp_path / "out", epochs=3)
    summary = train(config, data, lines.append)
    skipped = [line for line in lines if line.startswith("skipped step")]
    assert len(skipped) == 3
    for line in skipped:
        assert "loss nan" in line
        assert "red 4.png" in line
        assert "blue" not in line
        assert "rate " in line
    assert summary["epochs"] == 3
    assert all(t.isfinite().all() for t in state(tmp_path / "out")["model"].values())


def test_a_rate_too_high_is_lowered_and_given_up(tmp_path: Path, colors: Path) -> None:
    out = tmp_path / "out"
    lines: list[str] = []
    config = tiny_settings(colors, out, epochs=3, lr=1e6, clip_grad=0.0)
    with pytest.raises(JobFailed, match="lower --lr"):
        do(config, lines.append)
    restores = [line for line in lines if "back to" in line]
    assert [line.split("multiplied by ")[1] for line in restores] == ["0.1", "0.01", "0.001"]
    assert any(line.startswith("skipped step") and "rate" in line for line in lines)


def test_when_it_gives_up_the_best_weights_are_there(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_gradient, left = loop.compute_gradient, iter(range(3))  # of the first epoch

    def bad(*arguments: Any) -> Any:
        total, norm, count = compute_gradient(*arguments)
        return total, norm if next(left, None) is not None else norm * float("nan"), count

    monkeypatch.setattr(loop, "compute_gradient", bad)
    out = tmp_path / "out"
    with pytest.raises(JobFailed, match=r"the best weights so far are .*best\.safetensors"):
        do(tiny_settings(colors, out))
    best = load_model(out / "best.safetensors")
    assert best.training_info["epoch"] == 1
    assert all(value.isfinite().all() for value in best.state_dict().values())
    assert state(out)["progress"]["epoch"] == 1
    monkeypatch.setattr(loop, "compute_gradient", compute_gradient)
    do(tiny_settings(colors, out, resume=True))
    do(tiny_settings(colors, tmp_path / "whole"))
    assert same(state(out), state(tmp_path / "whole"))


def test_after_bad_steps_the_last_good_state_goes_on(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good"
    do(tiny_settings(colors, good, epochs=3))
    monkeypatch.setattr(loop, "BAD_STEPS", 2)
    compute_gradient, left = loop.compute_gradient, iter(range(4))

    def bad(*arguments: Any) -> Any:
        total, norm, count = compute_gradient(*arguments)
        return (total if next(left, None) is None else total * float("inf")), norm, count

    usual = state(good)["progress"]
    monkeypatch.setattr(loop, "compute_gradient", bad)
    lines: list[str] = []
    data = load_data(str(colors)).with_validation(0.2, 0)
    config = tiny_settings(colors, good, epochs=3, overwrite=True)
    train(config, data, lines.append)
    assert sum("back to epoch 1, step 0" in line for line in lines) == 2
    progress = state(good)["progress"]
    assert (progress["restores"], progress["epoch"]) == (2, 3)
    assert progress["rate"] == pytest.approx(0.01)
    rates = [row["lr"] for row in progress["history"]]
    assert rates == pytest.approx([0.01 * row["lr"] for row in usual["history"]])


@pytest.mark.parametrize("bad", [{4}, {4, 6}, {4, 5, 6}, {2, 4, 5, 6, 8}])
def test_a_step_that_is_not_finite_is_skipped_with_float16_too(
    bad: set[int], tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GradScaler accepts no gradient before `update` has followed the previous one."""
    compute_gradient, calls = loop.compute_gradient, []

    def failing(run: Any, step: int, parts: Any) -> Any:
        calls.append(step)
        total, norm, count = compute_gradient(run, step, parts)
        return (total * float("nan") if len(calls) in bad else total), norm, count

    scales: list[float] = []
    monkeypatch.setattr(loop, "compute_gradient", failing)
    lines: list[str] = []
    config = tiny_settings(colors, tmp_path / "out", epochs=4, amp="fp16", clip_grad=0.1)
    monkeypatch.setattr(
        loop, "log_bad_step", lambda run, *rest: scales.append(run.scaler.get_scale())
    )
    summary = do(config, lines.append)
    assert summary["epochs"] == 4
    restored = {4, 5, 6} <= bad
    assert any("back to epoch" in line for line in lines) == restored
    assert len(scales) == len(bad)
    saved = state(tmp_path / "out")
    assert all(value.isfinite().all() for value in saved["model"].values())
    # the scale is lowered by overflows alone, of which only the first steps have any
    assert saved["scaler"]["scale"] >= min(scales)


@pytest.mark.parametrize("stop", [4, 5, 7])
def test_float16_resumes_to_the_same_bits_around_a_bad_step(
    stop: int, tmp_path: Path, colors: Path
) -> None:
    compute_gradient = loop.compute_gradient

    def failing(run: Any, step: int, parts: Any) -> Any:
        total, norm, count = compute_gradient(run, step, parts)
        bad = (run.progress.epoch, step) == (1, 1)
        return (total * float("nan") if bad else total), norm, count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compute_gradient", failing)
        do(tiny_settings(colors, tmp_path / "whole", amp="fp16"))
        with pytest.raises(Stopped):
            stop_after(stop, lambda: do(tiny_settings(colors, tmp_path / "parts", amp="fp16")))
        do(tiny_settings(colors, tmp_path / "parts", amp="fp16", resume=True))
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert same(whole, parts)
    assert whole["scaler"] == parts["scaler"]


def test_a_full_disk_ends_the_run_and_keeps_the_last_state(tmp_path: Path, colors: Path) -> None:
    do(tiny_settings(colors, tmp_path / "whole"))
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        stop_after(4, lambda: do(tiny_settings(colors, out)))
    before = [(out / name).read_bytes() for name in ("last.pt", "best.safetensors")]
    resumed = tiny_settings(colors, out, resume=True)

    for limit, full in (
        (len(before[1]) // 2, "best.safetensors"),
        (len(before[0]) // 2, "last.pt"),
    ):

        def write_until_full(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            do(resumed)

        log = tmp_path / "log"
        assert status_of(start(write_until_full, log)) == 1
        last = log.read_text().splitlines()[-1]
        assert last.startswith(f"failed: {out / full}: cannot be written (File too large)")
        assert "Traceback" not in log.read_text()
        assert (out / "last.pt").read_bytes() == before[0]
        assert not list(out.glob(".*"))
    do(resumed)
    assert same(state(out), state(tmp_path / "whole"))


def test_too_little_space_is_said_at_the_start(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("kansformer.train.run_folder.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="1 MB are free and this run may need"):
        do(tiny_settings(colors, tmp_path / "out"))


def test_a_folder_with_other_things_is_not_written_into(tmp_path: Path, colors: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty.*--overwrite"):
        do(tiny_settings(colors, out))
    do(tiny_settings(colors, out, epochs=1, max_steps=1, overwrite=True))
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_picture_broken_in_mid_run_is_named_and_left_out(tmp_path: Path, colors: Path) -> None:
    data = load_data(str(colors)).with_validation(0.2, 0)
    Path(data.train.items[0]).write_bytes(b"no picture any more")
    assert data.val is not None
    Path(data.val.items[0]).write_bytes(b"nor this")
    log = tmp_path / "log"
    child = start(lambda: train(tiny_settings(colors, tmp_path / "out", epochs=2), data), log)
    assert status_of(child) == 0
    text = log.read_text()
    for pictures in (data.train, data.val):
        assert f"left out: {pictures.items[0]}: not a picture" in text
    assert "skipped step" not in text


def test_training_leaves_out_what_the_doctor_found_broken(tmp_path: Path) -> None:
    folder = tmp_path / "sick"
    wanted = make_sick(folder)
    flags = {"data_path": str(folder), "output": str(tmp_path / "out"), "epochs": 1, "workers": 0}
    flags |= {"model": "kansformer_micro_patch8_16", "batch_size": 8, "recipe": "small-pictures"}
    with pytest.raises(UserError, match="empty"):
        configure(flags)  # a class without pictures, which is for the user to mend
    shutil.rmtree(folder / "train" / "empty")
    with pytest.raises(UserError, match="a class without training pictures"):
        configure(flags)
    shutil.rmtree(folder / "val" / "new")
    before = fingerprint(folder)
    lines: list[str] = []
    config, data = configure(flags, lines.append)
    kinds = ("damaged", "not-a-picture", "too-many-pixels", "too-many-bytes", "no-file")
    broken = {name for kind in kinds for name in wanted[kind]} | wanted["link-to-nowhere"]
    for name in broken:
        assert any(Path(name).name in line for line in lines), name
        assert not any(item.endswith(name) for item in data.train.items)
    summary = train(config, data, lambda line: None)
    assert summary["pictures"]["train"] == len(data.train) > 30
    assert fingerprint(folder) == before
