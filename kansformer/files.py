"""Atomic writing of result files, and checks of output paths."""

import csv
import glob
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kansformer.errors import JobFailed, UserError
from models.plain import plain


def lies_within(path: Path, data_path: Path) -> bool:
    """Whether a path lies within the data folder, where nothing is ever written."""
    return data_path.is_dir() and path.resolve().is_relative_to(data_path.resolve())


def refuse_within(path: Path, data_path: Path) -> None:
    """Raises a UserError if a path lies within the data folder."""
    if lies_within(path, data_path):
        raise UserError(
            f"{path}: lies within {data_path}, which is never written to; choose an --output beside"
            " it"
        )


def make_output_folder(path: Path) -> None:
    """Creates a folder for results, and its parents; a UserError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be created ({error.strerror}); choose another --output"
        ) from None


def refuse_unmakeable(path: Path) -> None:
    """Raises a UserError if a folder for results could not be created or written; creates none."""
    parent = existing(path)
    if not parent.is_dir():
        raise UserError(f"{path}: cannot be created ({parent} is a file); choose another --output")
    if not may_write_in(parent):
        raise UserError(
            f"{path}: cannot be created (no permission to write in {parent});"
            " choose another --output"
        )


def may_write_in(folder: Path) -> bool:
    """Whether this process may create files in a folder."""
    effective = os.access in os.supports_effective_ids  # check the effective, not the real user
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


def existing(path: Path) -> Path:
    """The path itself if it exists, or its nearest existing parent."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` once it is complete and flushed to disk.

    On any error the existing file at `path` is kept. Temporary files of killed writers are removed.

    Args:
        keep: where to move the existing file at `path`.

    Raises:
        JobFailed: the system reports an error, such as a full disk.
    """
    prefix = f".{path.name}."
    for stale in path.parent.glob(f"{glob.escape(prefix)}*"):
        stale.unlink(missing_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp creates files readable by the owner only
        if keep is not None and path.exists():
            _keep_as(path, keep)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        # a writer in C++ may raise another error in response to the system's
        cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), None)
        if cause is None:
            raise
        raise JobFailed(
            f"{path}: cannot be written ({cause.strerror}), any existing file is kept;"
            " free some space or choose another folder"
        ) from None
    _flush_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically; on an error the existing file is kept and JobFailed is raised."""
    with replacing(path) as file:
        file.write(data)


def to_json(value: Any, **options: Any) -> str:
    """JSON of plain values, including NumPy's; the options are those of `json.dumps`.

    Raises:
        TypeError: the value contains another type.
    """

    def of_numpy(item: Any) -> Any:
        if isinstance(item, np.generic | np.ndarray):
            return plain(item)
        raise TypeError(f"{type(item).__name__} {item!r} is not a plain value")

    return json.dumps(value, default=of_numpy, **options)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON in UTF-8, atomically."""
    text = to_json(value, indent=2, ensure_ascii=False)
    # file names that are not UTF-8 contain lone surrogates, for which JSON has escapes
    write_bytes(path, (text + "\n").encode(errors="backslashreplace"))


def write_class_indices(path: Path, class_names: Sequence[str]) -> None:
    """Writes `class_indices.json`, which maps each index, as a string, to its class name."""
    write_json(path, {str(index): name for index, name in enumerate(class_names)})


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """CSV with a header line, of at least one row; all rows have the same keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `as_csv` atomically, in UTF-8; file names that are not UTF-8 keep their bytes."""
    write_bytes(path, as_csv(rows).encode(errors="surrogateescape"))


def _keep_as(path: Path, keep: Path) -> None:
    """Gives a file a second name, so that it exists under at least one name at any time."""
    keep.unlink(missing_ok=True)
    try:
        os.link(path, keep)
    except OSError:  # a file system without hard links
        os.replace(path, keep)


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power failure, where the system supports that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
