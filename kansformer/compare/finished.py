"""What a comparison keeps of a finished run, and how it recognizes one.

A run is finished once its folder has summary.json and, with the same figures in it, finished.json,
which also holds the settings and a hash of the pictures. Only then are its weights removed, so that
a kill at any time loses and repeats nothing.
"""

import json
from pathlib import Path
from typing import Any

from kansformer.data import PictureData
from kansformer.files import write_json
from kansformer.train import TrainConfig
from kansformer.train.run import fingerprint
from kansformer.train.state import check_same_run

RECORD = "finished.json"
STATES = ("last.pt", "last.previous.pt")
WEIGHTS = (*STATES, "best.safetensors")
# settings that training may choose by itself, and that all runs of a comparison share
SHARED = ("batch_size", "accumulate", "epochs")


def record(folder: Path, config: TrainConfig, data: PictureData, seconds: float) -> dict[str, Any]:
    """Records a run whose training has ended.

    Args:
        folder: of the run.
        config: its settings, as `configure` returned them.
        seconds: that it took.

    Returns:
        The record; "summary" has the contents of summary.json.
    """
    trained = json.loads((folder / "config.json").read_text(encoding="utf-8"))["train"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    entry = {
        "settings": {**config.to_dict(), "cache": False},  # without effect on the figures
        "step_size": config.batch_size * config.accumulate,
        "data": fingerprint(data),
        "shared": {
            "img_size": summary["model"]["img_size"],
            **{name: trained[name] for name in SHARED},
        },
        "seconds": seconds,
        "summary": summary,
    }
    write_json(folder / RECORD, entry)
    return entry


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run, or None if the run in this folder is not finished."""
    try:
        entry = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        is_of_this_run = entry["summary"] == summary  # not of one that was replaced
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return dict(entry) if is_of_this_run else None


def check_record(entry: dict[str, Any], config: TrainConfig, data: PictureData) -> None:
    """Checks that a finished run had these settings and pictures.

    Settings that may differ when a run is resumed may differ here too.

    Args:
        config: from `configure`, without --cache.

    Raises:
        UserError: it had others.
    """
    settings = {name: _as_tuples(value) for name, value in entry["settings"].items()}
    step_size = config.batch_size * config.accumulate
    check_same_run({**entry, "settings": settings}, config, fingerprint(data), step_size)


def has_state(folder: Path) -> bool:
    """Whether there is a state from which training can be resumed."""
    return any((folder / name).is_file() for name in STATES)


def remove_weights(folder: Path) -> None:
    """Removes a run's weights and states, and temporary files of writers that were killed."""
    for name in WEIGHTS:
        for path in (folder / name, *folder.glob(f".{name}.*")):
            path.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Total size of the files in a folder, bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _as_tuples(value: Any) -> Any:
    """Lists as tuples, which JSON does not have and settings do."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
