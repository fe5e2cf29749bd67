"""Copies a folder of class folders into train/, val/ and test/, leaving the original untouched."""

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
    """The result of a split.

    Attributes:
        counts: pictures per class (rows) and part (columns).
        groups: number of sets of pictures that were kept together.
        duplicates: pictures whose pixels equal those of an earlier picture.
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
            f" {number(self.duplicates, 'duplicate')}, each kept in the same part as its original"
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
                f"warning: {number(self.broken, 'picture')} cannot be read; to list them, run"
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

    Pictures with equal pixels, and files with the same regex match in their names, are kept in one
    part. Writes class_indices.json beside the parts.

    Args:
        ratios: shares of train, val and optionally test.
        symlink: link to the pictures instead of copying them.
        group_regex: pattern searched in each file name; its groups, or else the whole match, are
            the key by which files are kept together.

    Raises:
        UserError: the source has no class folders, the regex is invalid or does not match a name,
            or the target is not empty or lies within the source.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; check --data-path")
    listing = list_folder(source)
    if not listing.is_flat:
        folder = next(iter(listing.splits.values())).folder
        raise UserError(
            f"{source}: already split into {', '.join(listing.splits)}; train on it as it is, or"
            f" give --data-path {shlex.quote(str(folder))} to split that part"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: not empty, and nothing is overwritten; choose a new --output")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{target}: lies within {source}, which is never written to; choose another --output"
        )
    split = list_split(source)
    refuse(split.problems)
    class_names = tuple(split.classes)
    pictures = pictures_of(split, class_names)

    paths = [pictures.name(index) for index in range(len(pictures))]
    names = _name_groups(paths, group_regex)
    facts = inspect_files(paths)
    contents = [picture.digest if picture and picture.digest else path
                for path, picture in zip(paths, facts, strict=True)]  # fmt: skip
    broken = sum(1 for picture in facts if picture is not None and picture.kind)
    groups = _joined(contents, names)
    parts = stratified_split(pictures.labels, ratios, seed, groups)
    counts = np.zeros((len(class_names), len(parts)), dtype=np.int64)
    for column, (part, indices) in enumerate(zip(PARTS, parts, strict=False)):
        if not len(indices):
            raise UserError(
                f"{source}: {number(len(set(groups)), 'group')} of pictures to keep together"
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
    """A key per file: the regex match in its name; without a regex, the path."""
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
                f"{path}: --group-regex {regex!r} does not match this name; change the regex or"
                " rename the file"
            )
        keys.append("\0".join(part or "" for part in match.groups()) or match[0])
    return keys


def _joined(first: Sequence[object], second: Sequence[object]) -> list[int]:
    """Group number of each item, where items that are equal in either sequence share a group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    def codes(values: Sequence[object]) -> np.ndarray:
        numbers: dict[object, int] = defaultdict(lambda: len(numbers))
        return np.array([numbers[value] for value in values])

    left = codes(first)
    right = codes(second) + left.max() + 1
    size = int(right.max()) + 1
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1][left].tolist()
