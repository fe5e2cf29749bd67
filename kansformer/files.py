"""Writing files so that there is always a good one."""

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
    """Whether a place lies within the data, where nothing is ever written."""
    return data_path.is_dir() and path.resolve().is_relative_to(data_path.resolve())


def refuse_within(path: Path, data_path: Path) -> None:
    """Raises a UserError if a place lies within the data."""
    if lies_within(path, data_path):
        raise UserError(
            f"{path}: lies within {data_path}, which is never written; choose another --output"
        )


def make_output_folder(path: Path) -> None:
    """Makes a folder for results, with those above it; a UserError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made ({error.strerror}); choose another --output"
        ) from None


def refuse_unmakeable(path: Path) -> None:
    """Raises a UserError if a folder for results cannot be made or written; makes nothing."""
    there = existing(path)
    if not there.is_dir():
        raise UserError(f"{path}: cannot be made ({there} is a file); choose another --output")
    if not may_write_in(there):
        raise UserError(
            f"{path}: cannot be made ({there} may not be written); choose another --output"
        )


def may_write_in(folder: Path) -> bool:
    """Whether this process may make files in a folder."""
    by_effect = os.access in os.supports_effective_ids  # with the rights that it acts by
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=by_effect)


def existing(path: Path) -> Path:
    """The path itself, or the nearest above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` once it is complete and on the disk.

    If anything goes wrong, what was at `path` stays. Temporary files of writers that were killed
    are removed.

    Args:
        keep: gets what was at `path`.

    Raises:
        JobFailed: the system refuses, as where the disk is full.
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
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's own mode is private
        if keep is not None and path.exists():
            _put_aside(path, keep)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        # a writer in C++ may make an error of its own out of the system's
        cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), None)
        if cause is None:
            raise
        raise JobFailed(
            f"{path}: cannot be written ({cause.strerror}); make room, or choose another folder;"
            " what was there is kept"
        ) from None
    _flush_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, or leaves the one that was there (see `replacing`)."""
    with replacing(path) as file:
        file.write(data)


def to_json(value: Any, **options: Any) -> str:
    """JSON of plain values, of NumPy's numbers too; options are those of `json.dumps`.

    Raises:
        TypeError: something else is in it.
    """

    def of_numpy(item: Any) -> Any:
        if isinstance(item, np.generic | np.ndarray):
            return plain(item)
        raise TypeError(f"{type(item).__name__} {item!r} is no plain value")

    return json.dumps(value, default=of_numpy, **options)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON by `write_bytes`, in UTF-8."""
    text = to_json(value, indent=2, ensure_ascii=False)
    # bytes of a file name that are no UTF-8 are lone surrogates, which JSON has an escape for
    write_bytes(path, (text + "\n").encode(errors="backslashreplace"))


def write_class_indices(path: Path, class_names: Sequence[str]) -> None:
    """Writes `class_indices.json`: each index, as a string, with its class name."""
    write_json(path, {str(index): name for index, name in enumerate(class_names)})


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows, at least one and all with the same keys, as a table with a title line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `as_csv` by `write_bytes`, in UTF-8, or the bytes of a file name that is not."""
    write_bytes(path, as_csv(rows).encode(errors="surrogateescape"))


def _put_aside(path: Path, keep: Path) -> None:
    """Gives a file's contents another name too; there is no moment at which it has none."""
    keep.unlink(missing_ok=True)
    try:
        os.link(path, keep)
    except OSError:  # a file system without hard links
        os.replace(path, keep)


def _flush_folder(folder: Path) -> None:
    """Makes a renaming last through a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
