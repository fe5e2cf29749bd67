"""Lays a folder per class out as train/, val/ and test/ without touching the original."""

import hashlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kansformer.data.listing import list_split, refuse
from kansformer.data.sources import pictures_of
from kansformer.data.split import stratified_split
from kansformer.errors import UserError
from kansformer.files import write_class_indices
from kansformer.progress import progress_bar
from kansformer.words import number

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitReport:
    """Pictures per class (rows) and part (columns), and how many were bound together."""

    class_names: tuple[str, ...]
    counts: np.ndarray
    groups: int
    duplicates: int

    def __str__(self) -> str:
        parts = PARTS[: self.counts.shape[1]]
        width = max(len(name) for name in (*self.class_names, "total"))
        lines = [" " * width + "".join(f"{part:>8}" for part in parts)]
        for name, row in zip(
            (*self.class_names, "total"), (*self.counts, self.counts.sum(axis=0)), strict=True
        ):
            lines.append(f"{name:<{width}}" + "".join(f"{count:>8}" for count in row))
        lines.append(
            f"{number(int(self.counts.sum()), 'picture')} in {number(self.groups, 'group')};"
            f" {number(self.duplicates, 'picture')} equal to another one, kept on its side"
        )
        return "\n".join(lines)


def split_folder(
    source: Path,
    target: Path,
    ratios: Sequence[float],
    seed: int = 0,
    *,
    symlink: bool = False,
    group_regex: str | None = None,
) -> SplitReport:
    """Copies or links every picture into target/<part>/<class>/, by a seeded stratified split.

    Files with the same bytes, and files whose names match the regex alike, land in one part.
    Writes class_indices.json beside the parts.

    Args:
        ratios: shares of train, val and perhaps test.

    Raises:
        UserError: the source is no folder per class, the regex is bad or does not match a name, or
            the target is not empty or lies within the source.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; check --data-path")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: not empty, and nothing is overwritten; choose a new --output")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: lies within {source}, which is never written; choose another")
    listed = list_split(source)
    refuse(listed.problems)
    class_names = tuple(listed.classes)
    pictures = pictures_of(listed, class_names)

    paths = [pictures.name(index) for index in range(len(pictures))]
    names = _name_groups(paths, group_regex)
    contents = [_digest(path) for path in progress_bar(paths, "reading")]
    groups = _joined(contents, names)
    parts = stratified_split(pictures.labels, ratios, seed, groups)
    counts = np.zeros((len(class_names), len(parts)), dtype=np.int64)
    for column, (part, indices) in enumerate(zip(PARTS, parts, strict=False)):
        if not len(indices):
            raise UserError(
                f"{source}: {number(len(set(groups)), 'group')}, too few to fill {part};"
                " add pictures or change --ratios"
            )
        np.add.at(counts[:, column], pictures.labels[indices], 1)
    for part, indices in zip(PARTS, parts, strict=False):
        for index in progress_bar(indices.tolist(), part):
            path = Path(paths[index])
            to = target / part / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            if symlink:
                to.symlink_to(path.resolve())
            else:
                shutil.copy2(path, to)
    write_class_indices(target / "class_indices.json", class_names)
    duplicates = len(contents) - len(set(contents))
    return SplitReport(class_names, counts, len(set(groups)), duplicates)


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).digest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None


def _name_groups(paths: list[str], regex: str | None) -> list[str]:
    """The part of each file's name that the regex matches; without one, the path itself."""
    if regex is None:
        return paths
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"--group-regex {regex!r}: not a regular expression ({error})") from None
    keys = []
    for path in paths:
        match = pattern.search(os.path.basename(path))
        if match is None:
            raise UserError(
                f"{path}: --group-regex {regex!r} does not match this name; adapt the one or the"
                " other"
            )
        keys.append("\0".join(part or "" for part in match.groups()) or match[0])
    return keys


def _joined(first: Sequence[object], second: Sequence[object]) -> list[int]:
    """Numbers the groups that arise when items equal in either sequence belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    def codes(values: Sequence[object]) -> np.ndarray:
        known: dict[object, int] = defaultdict(lambda: len(known))
        return np.array([known[value] for value in values])

    left = codes(first)
    right = codes(second) + left.max() + 1
    size = int(right.max()) + 1
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1][left].tolist()
