"""The files of one training run."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard.writer import SummaryWriter

from kansformer.errors import UserError
from kansformer.files import make_output_folder, write_bytes, write_class_indices, write_json


class RunFolder:
    """Output folder of a run: what is written where.

    Raises:
        UserError: the folder lies within the data, cannot be made, or holds a run that is neither
            resumed nor replaced; or there is nothing to resume.
    """

    def __init__(self, path: Path, data_path: Path, *, resume: bool, overwrite: bool) -> None:
        self.data_path = data_path
        if self._is_in_data(path):
            raise UserError(
                f"{path}: lies within {data_path}, which is never written; choose another --output"
            )
        self.path = path
        self.best = path / "best.safetensors"
        self.last = path / "last.pt"
        self.events: SummaryWriter | None = None  # opened when there is something to write
        make_output_folder(path)
        if resume and not self.last.is_file():
            raise UserError(f"{self.last}: nothing to resume; leave out --resume to start")
        if not resume and not overwrite and (self.best.exists() or self.last.exists()):
            raise UserError(
                f"{path}: holds an earlier run; go on with --resume, replace it with --overwrite,"
                " or choose another --output"
            )

    def begin(
        self, settings: dict[str, Any], class_names: Sequence[str], also_in: Path | None
    ) -> None:
        """Puts a new run, which now has something to save, in the place of an earlier one.

        Writes config.json and class_indices.json, the latter to the folder `also_in` as well, if
        that is not part of the data.
        """
        (self.path / "summary.json").unlink(missing_ok=True)
        for events in (self.path / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()
        write_json(self.path / "config.json", settings)
        write_class_indices(self.path / "class_indices.json", class_names)
        if also_in is not None and not self._is_in_data(also_in):
            write_class_indices(also_in / "class_indices.json", class_names)

    def _is_in_data(self, path: Path) -> bool:
        """Whether a place lies within the data, where nothing is ever written."""
        data = self.data_path
        return data.is_dir() and path.resolve().is_relative_to(data.resolve())

    def write_history(self, history: Sequence[dict[str, Any]]) -> None:
        """metrics.jsonl, one object per epoch, its plot, and the last one's TensorBoard event."""
        if self.events is None:
            self.events = SummaryWriter(str(self.path / "tensorboard"))
        for key, value in history[-1].items():
            self.events.add_scalar(key, value, history[-1]["epoch"])
        lines = "".join(json.dumps(row) + "\n" for row in history)
        write_bytes(self.path / "metrics.jsonl", lines.encode())
        write_bytes(self.path / "curves.png", draw_curves(history))

    def finish(self, summary: dict[str, Any]) -> None:
        """summary.json, after which nothing more is written."""
        write_json(self.path / "summary.json", summary)
        if self.events is not None:
            self.events.close()

    def save_state(self, state: dict[str, Any]) -> None:
        """last.pt, plain types and tensors only."""
        packed = BytesIO()
        torch.save(state, packed)
        write_bytes(self.last, packed.getvalue())

    def load_state(self) -> dict[str, Any]:
        """The contents of last.pt, read without running code."""
        try:
            state = torch.load(self.last, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises anything
            cause = str(error).splitlines()[0]
            raise UserError(
                f"{self.last}: cannot be read ({cause}); start anew with --overwrite"
            ) from None
        return state


def draw_curves(history: Sequence[dict[str, Any]]) -> bytes:
    """Loss and accuracy by epoch, as a PNG."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [row["train_loss"] for row in history], "o--", ms=3, label="training")
    loss.plot(epochs, [row["val_loss"] for row in history], "s-", ms=3, label="validation")
    loss.set(xlabel="epoch", ylabel="loss (nats)")
    loss.legend(frameon=False)
    accuracy.plot(epochs, [row["val_acc1"] for row in history], "s-", ms=3, color="C1")
    best = max(history, key=lambda row: row["val_acc1"])
    accuracy.set_title(f"best: {best['val_acc1']:.2f} % in epoch {best['epoch']}", fontsize=10)
    accuracy.set(xlabel="epoch", ylabel="validation accuracy (%)")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    packed = BytesIO()
    figure.savefig(packed, format="png", dpi=110)
    return packed.getvalue()
