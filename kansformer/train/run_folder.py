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
from kansformer.pretrained.delta import save_delta
from kansformer.train.tensorboard import TensorBoardLog
from kansformer.words import number

SMALL_FILES = 20_000_000  # bytes reserved for curves, TensorBoard events and JSON files
DRAW_SECONDS = 30  # at least, between two plots of the curves, which outlast a short epoch


class RunFolder:
    """The output folder of a run and the files in it.

    Nothing is written before `make`.

    Raises:
        UserError: the folder lies within the data, cannot be created, or is not empty and neither
            resumed nor overwritten; or there is nothing to resume.
    """

    def __init__(self, path: Path, data_path: Path, *, resume: bool, overwrite: bool) -> None:
        refuse_within(path, data_path)
        self.data_path = data_path
        self.path = path
        self.best = path / "best.safetensors"
        self.delta = path / "best-delta.safetensors"
        self.last = path / "last.pt"
        self.previous = path / "last.previous.pt"
        self.last_drawn = time.monotonic()  # when the curves were plotted
        refuse_unmakeable(path)
        if resume and not (self.last.is_file() or self.previous.is_file()):
            raise UserError(f"{self.last}: nothing to resume; leave out --resume to start")
        occupied = path.is_dir() and any(file.name != "features" for file in path.iterdir())
        if not resume and not overwrite and occupied:
            contents = "holds an earlier run" if self.last.exists() else "is not empty"
            raise UserError(
                f"{path}: {contents}; continue with --resume, replace it with --overwrite, or"
                " choose another --output"
            )

    @cached_property
    def tensorboard(self) -> TensorBoardLog:
        """The TensorBoard log; its file is created on first use."""
        return TensorBoardLog(self.path / "tensorboard")

    def make(self) -> None:
        """Creates the folder itself."""
        make_output_folder(self.path)

    def start(
        self, settings: dict[str, Any], class_names: Sequence[str], also_in: Path | None
    ) -> None:
        """Replaces the files of an earlier run, now that a new one has something to save.

        Writes config.json and class_indices.json, the latter to the folder `also_in` as well,
        unless that lies within the data.
        """
        for old in (
            self.path / "summary.json", self.path / "report.html", self.previous, self.delta,
        ):  # fmt: skip
            old.unlink(missing_ok=True)
        for events in (self.path / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()
        write_json(self.path / "config.json", settings)
        write_class_indices(self.path / "class_indices.json", class_names)
        if also_in is not None and not lies_within(also_in, self.data_path):
            write_class_indices(also_in / "class_indices.json", class_names)

    def write_history(self, history: Sequence[dict[str, Any]], best: int) -> None:
        """Writes metrics.jsonl, one object per epoch, and logs the last epoch to TensorBoard.

        The curves are plotted every DRAW_SECONDS only.

        Args:
            best: number of the best epoch; 0 is the head that was fitted before the first one.
        """
        self.tensorboard.add_epoch(history[-1])
        lines = "".join(json.dumps(row) + "\n" for row in history)
        write_bytes(self.path / "metrics.jsonl", lines.encode())
        if time.monotonic() > self.last_drawn + DRAW_SECONDS:
            self._draw(history, best)

    def finish(self, history: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Writes the curves of all epochs and summary.json."""
        self._draw(history, summary["best_epoch"])
        write_json(self.path / "summary.json", summary)

    def write_delta(self, base: str) -> str:
        """Writes best-delta.safetensors; returns a line on it.

        Args:
            base: the file of --weights, from which it is the difference.
        """
        tensors = save_delta(self.delta, self.best, base).tensors
        size = self.delta.stat().st_size / 1e3
        count = number(len(tensors), "tensor")
        return f"{self.delta}: what differs from {base}, {count}, {size:,.1f} kB"

    def _draw(self, history: Sequence[dict[str, Any]], best: int) -> None:
        write_bytes(self.path / "curves.png", as_png(draw_history(history, best)))
        self.last_drawn = time.monotonic()

    def save_state(self, state: dict[str, Any]) -> None:
        """Writes last.pt with a checksum and keeps the previous one.

        Args:
            state: plain types and tensors only.
        """
        self.make()
        with replacing(self.last, keep=self.previous) as file:
            torch.save({**state, "checksum": checksum(state)}, file)

    def load_state(self, log: Callable[[str], None]) -> dict[str, Any]:
        """The contents of last.pt, or of the previous one where last.pt is damaged.

        Raises:
            UserError: neither can be read.
        """
        causes = []
        for path in (self.last, self.previous):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if state.pop("checksum") != checksum(state):
                    raise ValueError("its contents have changed since it was written")
            except Exception as error:  # a damaged archive may raise anything
                causes.append(f"{path.name}: {one_line(error)[:200]}")
                continue
            if causes:
                log(f"warning: {self.last}: damaged; resuming from {path.name}, the one before it")
            return state
        raise UserError(
            f"{self.last}: cannot be read ({'; '.join(causes)}); start over with --overwrite"
        )

    def check_space(self, parameters: int, averaged: bool) -> None:
        """Checks that the disk has space for the files of a run.

        Args:
            parameters: of the model.
            averaged: whether a moving average of the weights is saved too.

        Raises:
            UserError: it has too little.
        """
        state = parameters * 4 * (4 if averaged else 3)  # float32: weights, two moments, average
        needed = 3 * state + 2 * parameters * 4 + SMALL_FILES  # two states, a third being written
        free = shutil.disk_usage(existing(self.path)).free
        if free < needed:
            raise UserError(
                f"{self.path}: {free / 1e6:,.0f} MB are free and this run may need"
                f" {needed / 1e6:,.0f} MB; free space, or choose another --output"
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
