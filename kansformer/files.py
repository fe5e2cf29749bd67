"""Writing files so that there is always a good one."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kansformer.errors import UserError


def refuse_within(path: Path, data_path: Path) -> None:
    """Raises a UserError if a place lies within the data, where nothing is ever written."""
    if data_path.is_dir() and path.resolve().is_relative_to(data_path.resolve()):
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


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, or leaves the one that was there: temporary file, flush, rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's own mode is private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON by `write_bytes`."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


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
