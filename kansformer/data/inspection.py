"""What is known of picture files: each is decoded once, in several processes, and remembered.

The memory is a small SQLite file in the user's cache folder. Whatever it holds, nothing in it is
run, and what does not look like an entry counts as not known.
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

VERSION = 2  # of what `inspect` finds: another one makes old entries useless
# faults that lie in a file's bytes; others, such as permissions, may pass, and are not remembered
LASTING = ("", "damaged", "not-a-picture", "too-many-pixels", "too-many-bytes")
UNKNOWN = Stored("", "", 0, 0, 1, False, False)


@dataclass(frozen=True)
class Facts:
    """One picture: its digest and how it is stored, or what is wrong, as in `PictureError`."""

    kind: str = ""  # empty for a good picture
    cause: str = ""
    digest: str = ""  # of the upright pixels, in colour: equal pictures have equal digests
    stored: Stored = UNKNOWN


def inspect(path: str) -> Facts:
    """Decodes a whole picture file."""
    try:
        return _facts(decode(path, path))
    except PictureError as error:
        return Facts(error.kind, error.cause)


def inspect_array(pixels: np.ndarray) -> Facts:
    """The same for a picture in memory, (H, W) or (H, W, 3) uint8."""
    facts = _facts(decode(pixels, "array"))
    return replace(facts, stored=replace(facts.stored, format="array"))


def _facts(decoded: Decoded) -> Facts:
    image, stored = decoded.image, decoded.stored
    if deep_mode(image):  # 8 bits of it would depend on the levels of the data set
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
    """Facts of each file, from the cache or by decoding it; links to one file are decoded once.

    Args:
        workers: processes that decode; None for one per CPU.
        at_most: look at no more than so many different files, spread evenly over the list.

    Returns:
        One for each path; None for those that were not looked at. Which they are depends on the
        files alone, and not on the cache.
    """
    keys = [file_key(path) for path in paths]
    files = {key: path for key, path in zip(keys, paths, strict=True) if key is not None}
    if at_most is not None and len(files) > at_most:
        chosen = np.linspace(0, len(files) - 1, at_most).astype(int).tolist()
        places = list(files)
        files = {places[index]: files[places[index]] for index in chosen}
    cache = Cache(_cache_file(paths))
    known = cache.read(list(files))
    missing = [key for key in files if key not in known]
    found: dict[str, Facts] = {}
    try:
        results = in_processes(inspect, [files[key] for key in missing], workers, "pictures")
        for key, facts in zip(missing, results, strict=True):
            found[key] = facts
    finally:  # also after Ctrl-C
        cache.write(found)
    known |= found
    return [
        inspect(path) if key is None else known.get(key)
        for key, path in zip(keys, paths, strict=True)
    ]


def file_key(path: str) -> str | None:
    """Stands for a file's content without reading it, through any link; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    place = f"{status.st_dev}:{status.st_ino}" if status.st_ino else os.path.abspath(path)
    return f"{place}:{status.st_size}:{status.st_mtime_ns}"


def _cache_file(paths: Sequence[str]) -> Path | None:
    """Where facts are remembered; None without a cache folder, or with one among the pictures,
    where nothing is ever written.
    """
    folder = cache_folder()
    if folder is None:
        return None
    file = folder / "pictures.sqlite"
    ends = [os.path.realpath(path) for path in (min(paths), max(paths))] if paths else []
    try:
        inside = ends and file.resolve().is_relative_to(os.path.commonpath(ends))
    except (ValueError, OSError, RuntimeError):  # pictures on several drives; a link in a circle
        inside = False
    return None if inside else file


class Cache:
    """Facts by the keys of files, in an SQLite file; it forgets everything if that cannot be."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.prefix = f"{VERSION}:{PIL.__version__}:"  # another Pillow may decode otherwise

    def read(self, keys: Sequence[str]) -> dict[str, Facts]:
        """What is known of these files."""
        found: dict[str, Facts] = {}
        with self._open() as base:
            for start in range(0, len(keys), 500):
                asked = {self.prefix + key: key for key in keys[start : start + 500]}
                marks = ",".join("?" * len(asked))
                query = f"SELECT key, facts FROM facts WHERE key IN ({marks})"
                for key, text in base.execute(query, list(asked)):
                    facts = _from_text(text)
                    if key in asked and facts is not None:
                        found[asked[key]] = facts
        return found

    def write(self, found: dict[str, Facts]) -> None:
        """Remembers facts, but for faults that may pass."""
        rows = [
            (self.prefix + key, _to_text(facts))
            for key, facts in found.items()
            if facts.kind in LASTING
        ]
        with self._open() as base:
            base.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)
            base.commit()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file's connection, or one to nothing; an error of SQLite ends the block, no more."""
        try:
            with closing(self._connect()) as base:
                yield base
        except sqlite3.Error as error:
            self._give_up(error)

    def _connect(self) -> sqlite3.Connection:
        create = "CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, facts TEXT)"
        try:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                base = sqlite3.connect(self.file)
                try:
                    base.execute("PRAGMA trusted_schema = OFF")  # a stranger's file runs nothing
                    base.execute(create)
                except sqlite3.Error:
                    base.close()
                    raise
                return base
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
        base = sqlite3.connect(":memory:")
        base.execute(create)
        return base

    def _give_up(self, error: Exception) -> None:
        """Removes a file that is damaged or no data base: the class itself stands for that."""
        if type(error) is sqlite3.DatabaseError and self.file is not None:
            with suppress(OSError):
                self.file.unlink()


def _to_text(facts: Facts) -> str:
    return json.dumps([facts.kind, facts.cause, facts.digest, *astuple(facts.stored)])


def _from_text(text: object) -> Facts | None:
    """The facts of a row, or None if it is anything else."""
    try:
        row = json.loads(text) if isinstance(text, str) and len(text) < 2000 else None
    except (ValueError, RecursionError):
        return None
    types = [str] * 5 + [int] * 3 + [bool] * 2 + [float] * 2 + [str]
    if not isinstance(row, list) or [type(value) for value in row] != types:
        return None
    facts = Facts(row[0], row[1], row[2], Stored(*row[3:]))
    return facts if facts.kind in LASTING and bool(facts.kind) != bool(facts.digest) else None
