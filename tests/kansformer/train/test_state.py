"""The saved state: always a good one on the disk, complete, and checked before it is restored."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kansformer.errors import Stopped, UserError
from kansformer.train.run_folder import RunFolder
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import TRICKS, do, same, state, stop_after
from tests.processes import start, status_of


def test_killed_thirty_times_while_saving_there_is_always_a_good_state(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", tmp_path / "data", resume=False, overwrite=False)

    def save_for_ever() -> None:
        number = folder.load_state(print)["number"]
        while True:
            number += 1
            folder.save_state({"number": number, "weights": torch.full((200_000,), number * 1.0)})

    folder.save_state({"number": 0, "weights": torch.zeros(200_000)})
    before, chance = 0, random.Random(0)
    for _ in range(30):
        child = start(save_for_ever)
        while not list(folder.path.glob(".last.pt.*")):  # it has begun to write
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        status_of(child)
        complaints: list[str] = []
        loaded = folder.load_state(complaints.append)
        assert not complaints
        assert torch.equal(loaded["weights"], torch.full((200_000,), loaded["number"] * 1.0))
        assert loaded["number"] >= before
        before = loaded["number"]
    assert before > 0


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path, colors: Path) -> None:
    out = tmp_path / "out"
    config = tiny_settings(colors, out, epochs=3)
    do(config)
    whole = state(out)
    last, previous = out / "last.pt", out / "last.previous.pt"
    folder = RunFolder(out, colors, resume=True, overwrite=False)
    good, kept = last.read_bytes(), previous.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for damaged in (b"", good[: len(good) // 2], bytes(flipped)):
        last.write_bytes(damaged)
        lines: list[str] = []
        assert folder.load_state(lines.append)["progress"]["epoch"] == 2
        assert "last.pt: damaged; resuming from last.previous.pt" in lines[0]
    lines = []
    do(replace(config, resume=True), lines.append)
    assert "resumed after epoch 2" in lines
    assert same(state(out), whole)
    last.unlink()
    previous.write_bytes(kept[:99])
    with pytest.raises(UserError, match=r"cannot be read .*start over with --overwrite"):
        do(replace(config, resume=True))


def test_settings_that_did_not_exist_had_their_defaults(tmp_path: Path, colors: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        stop_after(1, lambda: do(tiny_settings(colors, out)))
    old = state(out)
    old.pop("checksum")
    del old["settings"]["ema"]
    RunFolder(out, colors, resume=True, overwrite=False).save_state(old)
    with pytest.raises(UserError, match=r"--ema is 0\.5 now and was 0\.0"):
        do(tiny_settings(colors, out, resume=True, ema=0.5))
    with pytest.raises(UserError, match="a step takes 16 pictures now and took 8"):
        do(tiny_settings(colors, out, resume=True, batch_size=16))
    do(tiny_settings(colors, out, resume=True, batch_size=4, accumulate=2))


def test_generators_do_not_matter(tmp_path: Path, colors: Path) -> None:
    """Each step seeds its generators, so their states need not be saved."""
    settings = {"epochs": 2, **TRICKS}
    do(tiny_settings(colors, tmp_path / "whole", **settings))
    with pytest.raises(Stopped):
        stop_after(4, lambda: do(tiny_settings(colors, tmp_path / "parts", **settings)))
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    do(tiny_settings(colors, tmp_path / "parts", **settings, resume=True))
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_the_old_spelling_of_a_key_is_read(tmp_path: Path, colors: Path) -> None:
    settings = {"epochs": 2, **TRICKS}
    do(tiny_settings(colors, tmp_path / "whole", **settings))
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        stop_after(4, lambda: do(tiny_settings(colors, out, **settings)))
    old = {"optimiser" if k == "optimizer" else k: v for k, v in state(out).items()}
    old.pop("checksum")
    assert old["optimiser"]["state"]
    RunFolder(out, colors, resume=True, overwrite=False).save_state(old)
    do(tiny_settings(colors, out, **settings, resume=True))
    assert same(state(out), state(tmp_path / "whole"))
