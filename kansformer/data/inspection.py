"""Facts about picture files: each file is decoded once, in several processes, and cached.

The cache is a small SQLite file in the user's cache folder. Its content is never executed, and
invalid entries are ignored.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import PIL

from kansformer.data.images import (
    Decoded,
    PictureError,
    Stored,
    decode,
    deep_mode,
    deep_values,
    to_8_bit,
    upright,
)
from kansformer.data.parallel import in_processes
from models.cache import cache_folder

VERSION = 2  # of the cache entries: increase it when `inspect` changes, to invalidate old entries
# kinds of faults in a file's content; other faults, such as permissions, may be fixed without
# changing the file, and are not cached
CACHEABLE = ("", "damaged", "not-a-picture", "too-many-pixels", "too-many-bytes")
UNKNOWN = Stored("", "", 0, 0, 1, False, False)


@dataclass(frozen=True)
class Facts:
    """Facts about one picture: its digest and stored properties, or the fault (`PictureError`)."""

    kind: str = ""  # kind of fault; empty for a readable picture
    cause: str = ""
    digest: str = ""  # SHA-256 of the upright pixels, grey as RGB: equal for equal pictures
    stored: Stored = UNKNOWN


def inspect(path: str) -> Facts:
    """Decodes a picture file completely; a fault is returned, not raised."""
    try:
        return _facts(decode(path, path))
    except PictureError as error:
        return Facts(error.kind, error.cause)


def inspect_array(pixels: np.ndarray) -> Facts:
    """The facts about a picture in memory, (H, W) or (H, W, 3) uint8."""
    facts = _facts(decode(pixels, "array"))
    return replace(facts, stored=replace(facts.stored, format="array"))


def _facts(decoded: Decoded) -> Facts:
    image, stored = decoded.image, decoded.stored
    if deep_mode(image):  # the 8-bit pixels would depend on the levels of the data set
        values = deep_values(upright(image, image))
        stored = replace(stored, low=float(values.min()), high=float(values.max()))
        size, pixels = values.shape[::-1], values.tobytes()
    else:
        image = upright(to_8_bit(image, None), image)
        size, pixels = image.size, image.convert("RGB").tobytes()
    digest = hashlib.sha256(f"{size[0]}x{size[1]}:".encode() + pixels)
    return Facts(digest=digest.hexdigest(), stored=stored)


def inspect_files(
    paths: Sequence[str], workers: int | None = None, at_most: int | None = None
) -> list[Facts | None]:
    """Facts about each file, from the cache or by decoding it; links to one file are decoded once.

    Args:
        workers: processes that decode; None for one per CPU.
        at_most: inspect at most this many distinct files, spread evenly over the list.

    Returns:
        The facts for each path, None for files that were not inspected. Which files are inspected
        depends on the list alone, not on the cache.
    """
    keys = [file_key(path) for path in paths]
    files = {key: path for key, path in zip(keys, paths, strict=True) if key is not None}
    if at_most is not None and len(files) > at_most:
        chosen = np.linspace(0, len(files) - 1, at_most).astype(int).tolist()
        distinct = list(files)
        files = {distinct[index]: files[distinct[index]] for index in chosen}
    cache = Cache(_cache_file(paths))
    known = cache.read(list(files))
    missing = [key for key in files if key not in known]
    new: dict[str, Facts] = {}
    try:
        results = in_processes(inspect, [files[key] for key in missing], workers, "pictures")
        for key, facts in zip(missing, results, strict=True):
            new[key] = facts
    finally:  # also after Ctrl-C
        cache.write(new)
    known |= new
    return [
        inspect(path) if key is None else known.get(key)
        for key, path in zip(keys, paths, strict=True)
    ]


def file_key(path: str) -> str | None:
    """Identifies a file's content by inode, size and time, following links; None if missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    file = f"{status.st_dev}:{status.st_ino}" if status.st_ino else os.path.abspath(path)
    return f"{file}:{status.st_size}:{status.st_mtime_ns}"


def _cache_file(paths: Sequence[str]) -> Path | None:
    """The cache's path; None if there is no cache folder or if it lies within the data folder,
    where nothing is ever written.
    """
    folder = cache_folder()
    if folder is None:
        return None
    file = folder / "pictures.sqlite"
    # the common path of the first and the last in sorted order is that of all
    ends = [os.path.realpath(path) for path in (min(paths), max(paths))] if paths else []
    try:
        inside = ends and file.resolve().is_relative_to(os.path.commonpath(ends))
    except (ValueError, OSError, RuntimeError):  # pictures on several drives; a circular link
        inside = False
    return None if inside else file


class Cache:
    """Facts per file key in an SQLite file; without a usable file, nothing is stored."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.prefix = f"{VERSION}:{PIL.__version__}:"  # another Pillow may decode differently

    def read(self, keys: Sequence[str]) -> dict[str, Facts]:
        """The cached facts of those files that have an entry."""
        entries: dict[str, Facts] = {}
        with self._open() as database:
            for start in range(0, len(keys), 500):
                batch = {self.prefix + key: key for key in keys[start : start + 500]}
                marks = ",".join("?" * len(batch))
                query = f"SELECT key, facts FROM facts WHERE key IN ({marks})"
                for key, text in database.execute(query, list(batch)):
                    facts = _from_text(text)
                    if key in batch and facts is not None:
                        entries[batch[key]] = facts
        return entries

    def write(self, entries: dict[str, Facts]) -> None:
        """Stores facts per file key, except for faults that are not CACHEABLE."""
        rows = [
            (self.prefix + key, _to_text(facts))
            for key, facts in entries.items()
            if facts.kind in CACHEABLE
        ]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)
            database.commit()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Connects to the file, or to an empty database; an SQLite error only ends the block."""
        try:
            with closing(self._connect()) as database:
                yield database
        except sqlite3.Error as error:
            self._give_up(error)

    def _connect(self) -> sqlite3.Connection:
        create = "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, facts TEXT)"
        try:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                database = sqlite3.connect(self.file)
                try:
                    database.execute("PRAGMA trusted_schema = OFF")  # the file may not be ours
                    database.execute(create)
                except sqlite3.Error:
                    database.close()
                    raise
                return database
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
        database = sqlite3.connect(":memory:")
        database.execute(create)
        return database

    def _give_up(self, error: Exception) -> None:
        """Removes a file that is damaged or not a database.

        SQLite reports these with `DatabaseError` itself, and other errors with its subclasses.
        """
        if type(error) is sqlite3.DatabaseError and self.file is not None:
            with suppress(OSError):
                self.file.unlink()


def _to_text(facts: Facts) -> str:
    return json.dumps([facts.kind, facts.cause, facts.digest, *astuple(facts.stored)])


def _from_text(text: object) -> Facts | None:
    """The facts in a row, or None if its content is invalid."""
    try:
        row = json.loads(text) if isinstance(text, str) and len(text) < 2000 else None
    except (ValueError, RecursionError):
        return None
    types = [str] * 5 + [int] * 3 + [bool] * 2 + [float] * 2 + [str]
    if not isinstance(row, list) or [type(value) for value in row] != types:
        return None
    facts = Facts(row[0], row[1], row[2], Stored(*row[3:]))
    return facts if facts.kind in CACHEABLE and bool(facts.kind) != bool(facts.digest) else None
