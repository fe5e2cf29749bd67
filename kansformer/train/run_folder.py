"""The files of one training run."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kansformer.errors import UserError, one_line
from kansformer.evaluate.plots import draw_history
from kansformer.figures import as_png
from kansformer.files import (
    existing,
    lies_within,
    make_output_folder,
    refuse_unmakeable,
    refuse_within,
    replacing,
    write_bytes,
    write_class_indices,
    write_json,
)
from kansformer.train.events import Events

SMALL_FILES = 20_000_000  # bytes for curves, events, tables
DRAW_SECONDS = 30  # between two drawings of the curves, which take longer than a short epoch


class RunFolder:
    """Output folder of a run: what is written where.

    Nothing is written before `make`.

    Raises:
        UserError: the folder lies within the data, cannot be made, or holds something and is
            neither resumed nor replaced; or there is nothing to resume.
    """

    def __init__(self, path: Path, data_path: Path, *, resume: bool, overwrite: bool) -> None:
        refuse_within(path, data_path)
        self.data_path = data_path
        self.path = path
        self.best = path / "best.safetensors"
        self.last = path / "last.pt"
        self.previous = path / "last.previous.pt"
        self.drawn = time.monotonic()  # when the curves were last
        refuse_unmakeable(path)
        if resume and not (self.last.is_file() or self.previous.is_file()):
            raise UserError(f"{self.last}: nothing to resume; leave out --resume to start")
        if not resume and not overwrite and path.is_dir() and any(path.iterdir()):
            held = "holds an earlier run" if self.last.exists() else "is not empty"
            raise UserError(
                f"{path}: {held}; go on with --resume, replace it with --overwrite, or choose"
                " another --output"
            )

    @cached_property
    def events(self) -> Events:
        """For TensorBoard; the file is opened when there is something to write."""
        return Events(self.path / "tensorboard")

    def make(self) -> None:
        """Makes the folder itself."""
        make_output_folder(self.path)

    def begin(
        self, settings: dict[str, Any], class_names: Sequence[str], also_in: Path | None
    ) -> None:
        """Puts a new run, which now has something to save, in the place of an earlier one.

        Writes config.json and class_indices.json, the latter to the folder `also_in` as well, if
        that is not part of the data.
        """
        for old in (self.path / "summary.json", self.path / "report.html", self.previous):
            old.unlink(missing_ok=True)
        for events in (self.path / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()
        write_json(self.path / "config.json", settings)
        write_class_indices(self.path / "class_indices.json", class_names)
        if also_in is not None and not lies_within(also_in, self.data_path):
            write_class_indices(also_in / "class_indices.json", class_names)

    def write_history(self, history: Sequence[dict[str, Any]], best: int) -> None:
        """metrics.jsonl, one object per epoch, the last one's TensorBoard event, and now and then
        the curves.
        """
        self.events.add_epoch(history[-1])
        lines = "".join(json.dumps(row) + "\n" for row in history)
        write_bytes(self.path / "metrics.jsonl", lines.encode())
        if time.monotonic() > self.drawn + DRAW_SECONDS:
            self._draw(history, best)

    def finish(self, history: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
        """The curves to the end and summary.json."""
        self._draw(history, summary["best_epoch"])
        write_json(self.path / "summary.json", summary)

    def _draw(self, history: Sequence[dict[str, Any]], best: int) -> None:
        write_bytes(self.path / "curves.png", as_png(draw_history(history, best)))
        self.drawn = time.monotonic()

    def save_state(self, state: dict[str, Any]) -> None:
        """last.pt, plain types and tensors only, with a checksum; the one before it is kept too."""
        self.make()
        with replacing(self.last, keep=self.previous) as file:
            torch.save({**state, "checksum": checksum(state)}, file)

    def load_state(self, say: Callable[[str], None]) -> dict[str, Any]:
        """The contents of last.pt, or of the state before it where that is damaged.

        Raises:
            UserError: neither can be read.
        """
        causes = []
        for path in (self.last, self.previous):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if state.pop("checksum") != checksum(state):
                    raise ValueError("its contents have changed since it was written")
            except Exception as error:  # a damaged archive raises anything
                causes.append(f"{path.name}: {one_line(error)[:200]}")
                continue
            if causes:
                say(f"warning: {self.last}: damaged; going on from {path.name}, written before it")
            return state
        raise UserError(
            f"{self.last}: cannot be read ({'; '.join(causes)}); start anew with --overwrite"
        )

    def check_space(self, parameters: int, averaged: bool) -> None:
        """Looks whether the disk can hold what a run writes.

        Raises:
            UserError: it cannot.
        """
        state = parameters * 4 * (4 if averaged else 3)  # weights, moments, average: float32
        needed = 3 * state + 2 * parameters * 4 + SMALL_FILES  # two states and one being written
        free = shutil.disk_usage(existing(self.path)).free
        if free < needed:
            raise UserError(
                f"{self.path}: {free / 1e6:,.0f} MB are free and this run may need"
                f" {needed / 1e6:,.0f} MB; make room, or choose another --output"
            )


def checksum(state: Any) -> str:
    """SHA-256 of plain values and tensors, nested in dictionaries, lists and tuples."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            digest.update(f"dict {len(value)}".encode())
            for key, item in value.items():
                digest.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"list {len(value)}".encode())
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()
