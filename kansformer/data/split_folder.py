"""Lays a folder per class out as train/, val/ and test/ without touching the original."""

import os
import re
import shlex
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kansformer.data.inspection import inspect_files
from kansformer.data.listing import list_folder, list_split, refuse
from kansformer.data.sources import pictures_of
from kansformer.data.split import stratified_split
from kansformer.errors import UserError
from kansformer.files import write_class_indices
from kansformer.progress import progress_bar
from kansformer.words import number

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitReport:
    """Pictures per class (rows) and part (columns), and what to know about them.

    Attributes:
        groups: sets of pictures that were kept together.
        duplicates: pictures whose pixels are equal to another one's.
        broken: pictures that cannot be read.
    """

    class_names: tuple[str, ...]
    counts: np.ndarray
    groups: int
    duplicates: int
    broken: int = 0

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
        for part, column in zip(parts, self.counts.T, strict=True):
            empty = [self.class_names[label] for label in np.flatnonzero(column == 0)]
            if empty:
                more = f" and {len(empty) - 5:,} more" if len(empty) > 5 else ""
                lines.append(
                    f"warning: {part} has no picture of {', '.join(empty[:5])}{more}; add pictures"
                    " or change --ratios"
                )
        if self.broken:
            lines.append(
                f"warning: {number(self.broken, 'picture')} cannot be read; the doctor names them:"
                " python -m kansformer.data.doctor"
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

    Pictures with equal pixels, as the doctor finds them, and files whose names match the regex
    alike land in one part. Writes class_indices.json beside the parts.

    Args:
        ratios: shares of train, val and perhaps test.

    Raises:
        UserError: the source is no folder per class, the regex is bad or does not match a name, or
            the target is not empty or lies within the source.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; check --data-path")
    whole = list_folder(source)
    if not whole.is_flat:
        place = next(iter(whole.splits.values())).folder
        raise UserError(
            f"{source}: is split already, into {', '.join(whole.splits)}; train on it as it is, or"
            f" give --data-path {shlex.quote(str(place))} to split that part"
        )
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
    facts = inspect_files(paths)
    contents = [known.digest if known and known.digest else path
                for path, known in zip(paths, facts, strict=True)]  # fmt: skip
    broken = sum(1 for known in facts if known is not None and known.kind)
    groups = _joined(contents, names)
    parts = stratified_split(pictures.labels, ratios, seed, groups)
    counts = np.zeros((len(class_names), len(parts)), dtype=np.int64)
    for column, (part, indices) in enumerate(zip(PARTS, parts, strict=False)):
        if not len(indices):
            raise UserError(
                f"{source}: {number(len(set(groups)), 'group')} of pictures that belong together"
                f" cannot fill {part}; add pictures or change --ratios"
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
    return SplitReport(class_names, counts, len(set(groups)), duplicates, broken)


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
