"""Checks for problems of a data set, given its listing and the facts about its pictures."""

import math
import os
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kansformer.data.images import DEFAULT_LEVELS, REMEDIES, extension, unread_remedy
from kansformer.data.inspection import Facts
from kansformer.data.listing import (
    Listing,
    Problem,
    has_unread_name,
    is_dead_link,
    is_system_name,
)
from kansformer.words import command, number

SEVERITIES = ("error", "warning", "note")
FEW_TO_SPLIT = 5  # pictures: with fewer, the default --val-split of 0.2 leaves none for validation
UNBALANCED = 10  # ratio of the largest class to the smallest from which a warning is given
# descriptions of the kinds of PictureError
BROKEN = {
    "damaged": "damaged, cannot be decoded completely",
    "not-a-picture": "not a picture of a known format",
    "too-many-pixels": "more pixels than the limit",
    "too-many-bytes": "more bytes than the limit",
    "link-to-nowhere": "broken links",
    "missing": "deleted since the folder was listed",
    "unreadable": "cannot be read",
    "no-file": "pipes, sockets or devices",
    "folder": "folders",
    "out-of-range": "pixel values outside the expected range",
}
# kinds whose cause differs from file to file
WITH_CAUSES = ("damaged", "link-to-nowhere", "too-many-bytes", "unreadable")
Picture = tuple[str, str, str, Facts]  # path, split, class, facts


@dataclass(frozen=True)
class Finding:
    """One finding: its severity, a fixed keyword, a description and the remedy.

    Severities: `error`, training cannot use the files or its metrics would be wrong; `warning`,
    perhaps unintended; `note`, handled automatically. `files` lists the files concerned; `groups`
    lists sets of files that are equal to each other.
    """

    severity: str
    kind: str
    text: str
    remedy: str
    files: Sequence[str] = ()
    causes: Sequence[str] = ()  # one for each file or group, if they differ
    groups: Sequence[Sequence[str]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types, without empty fields."""
        return {key: value for key, value in asdict(self).items() if value}

    def lines(self, limit: int = 10) -> list[str]:
        """Lines of text that list at most `limit` files or groups."""
        shown = list(self.files)
        for group in self.groups:
            rest = [f"{len(group) - 4:,} more"] if len(group) > 4 else []
            shown.append(" = ".join([*group[:4], *rest]))
        if self.causes:
            shown = [f"{name}: {cause}" for name, cause in zip(shown, self.causes, strict=True)]
        lines = [f"{self.severity}: {self.text}; {self.remedy}", *(f"  {n}" for n in shown[:limit])]
        return lines + [f"  and {len(shown) - limit} more"] * (len(shown) > limit)


def broken(pictures: Iterable[Picture]) -> list[Finding]:
    """Unreadable pictures, which training leaves out, one finding per kind of fault."""
    kinds: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture[3].kind:
            kinds[picture[3].kind].append(picture)
    return [
        Finding(
            "error",
            kind,
            f"{number(len(group), 'picture')} left out: {BROKEN[kind]}",
            REMEDIES[kind],
            [path for path, *_ in group],
            [facts.cause for *_, facts in group] if kind in WITH_CAUSES else (),
        )
        for kind, group in sorted(kinds.items())
    ]


def refused(problems: Sequence[Problem]) -> list[Finding]:
    """Problems of the folders that keep training from starting."""
    kinds: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind, problem.cause, problem.remedy].append(problem.path)
    return [
        Finding("error", kind, f"{number(len(paths), 'folder')}: {cause}", remedy, paths)
        for (kind, cause, remedy), paths in kinds.items()
    ]


def ignored(listing: Listing) -> list[Finding]:
    """Files and folders in the data folder that are not read."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in listing.ignored:
        kinds[_why_ignored(path)].append(path)
    findings = []
    if dead := kinds["dead-link"]:
        text = f"{number(len(dead), 'broken link')} without a picture's file extension"
        findings.append(Finding("warning", "dead-link", text, REMEDIES["link-to-nowhere"], dead))
    if unread := kinds["unread-format"]:
        findings.append(unread_formats(unread))
    if system := kinds["system-files"]:
        text = f"files and folders of operating systems skipped: {len(system):,}"
        findings.append(Finding("note", "system-files", text, "nothing to do", system))
    if rest := kinds["ignored"]:
        text = f"other files and folders skipped: {len(rest):,}"
        remedy = "nothing to do, unless they should be used"
        findings.append(Finding("note", "ignored", text, remedy, rest))
    return findings


def passed_over(listing: Listing, data_path: str) -> list[Finding]:
    """The findings of `ignored` that a training run reports, in one line each, without files."""
    remedy = f"to list them, run {doctor(data_path)}"
    return [
        replace(finding, remedy=remedy, files=())
        for finding in ignored(listing)
        if finding.kind in ("unread-format", "system-files")
    ]


def doctor(data_path: str) -> str:
    """The shell command that examines a data set."""
    return f"{command('doctor')} --data-path {shlex.quote(data_path)}"


def _why_ignored(path: str) -> str:
    if is_dead_link(path):
        return "dead-link"
    if is_system_name(path):
        return "system-files"
    return "unread-format" if has_unread_name(path) else "ignored"


def unread_formats(paths: Sequence[str]) -> Finding:
    """Files with extensions of picture formats that are not supported."""
    counts = Counter(map(extension, paths)).most_common()
    endings = ", ".join(f"{ending} {count:,}" for ending, count in counts)
    text = f"{number(len(paths), 'picture')} in unsupported formats ({endings})"
    return Finding("warning", "unread-format", text, unread_remedy(paths), paths)


def converted(pictures: Iterable[Picture]) -> list[Finding]:
    """Pictures that are turned upright, or converted to 8-bit grey or color, when read."""
    tests: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "turned": ("rotated or mirrored by EXIF", lambda s: s.orientation != 1),
        "deep": ("with more than 8 bits per channel", lambda s: s.is_deep),
        "cmyk": ("in CMYK", lambda s: s.mode == "CMYK"),
        "transparent-palette": (
            "with a palette and transparency", lambda s: s.mode == "P" and s.is_transparent,
        ),
        "transparent": ("with transparency", lambda s: s.mode != "P" and s.is_transparent),
    }  # fmt: skip
    paths: dict[str, list[str]] = defaultdict(list)
    for path, _, _, facts in pictures:
        for kind, (_, applies) in tests.items():
            if applies(facts.stored):
                paths[kind].append(path)
    return [
        Finding(
            "note",
            kind,
            f"{number(len(paths[kind]), 'picture')} {words}: converted when read",
            "nothing to do",
            paths[kind],
        )
        for kind, (words, _) in tests.items()
        if paths[kind]
    ]


def mended(pictures: Sequence[Picture]) -> list[Finding]:
    """Pictures that can be read although their files are defective."""
    faulty = [(path, facts.stored.note) for path, _, _, facts in pictures if facts.stored.note]
    if not faulty:
        return []
    text = f"{number(len(faulty), 'picture')} readable despite defects in the file"
    files, notes = zip(*faulty, strict=True)
    return [Finding("note", "mended", text, "nothing to do", files, notes)]


def scaled(facts: Iterable[Facts]) -> list[Finding]:
    """The black and white levels by which pictures with more than 8 bits are converted to 8."""
    return [
        Finding(
            "note",
            "levels",
            f"pictures of mode {mode}: {low:g} is black and {high:g} is white in all of them",
            "nothing to do, unless the values are not brightness",
        )
        for mode, (low, high) in levels_of(facts).items()
    ]


def levels_of(facts: Iterable[Facts]) -> dict[str, tuple[float, float]]:
    """Black and white level per Pillow mode, for the pictures of a data set with more than 8 bits.

    Black is 0, or the least value if that is negative. White is 1 for floats up to 1; otherwise
    the smallest of 255, 511, 1023, ... (2**n - 1) that no value exceeds.
    """
    ranges: dict[str, tuple[float, float]] = {}
    for picture in facts:
        stored = picture.stored
        mode = "I;16" if stored.mode.startswith("I;16") else stored.mode
        if mode in DEFAULT_LEVELS and not picture.kind:
            low, high = ranges.get(mode, (0.0, 0.0))
            ranges[mode] = min(low, stored.low), max(high, stored.high)
    return {mode: (low, _white(mode, high)) for mode, (low, high) in ranges.items()}


def _white(mode: str, highest: float) -> float:
    if mode == "F" and highest <= 1:
        return 1.0
    return 2.0 ** max(8, math.ceil(highest).bit_length()) - 1 if highest < 2**53 else highest


def duplicates(pictures: Iterable[Picture]) -> list[Finding]:
    """Pictures whose decoded pixels are equal, whatever their file names and formats."""
    equal: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture[3].digest:
            equal[picture[3].digest].append(picture)
    groups = [group for group in equal.values() if len(group) > 1]
    across = [group for group in groups if len({split for _, split, _, _ in group}) > 1]
    conflicting = [group for group in groups if len({name for _, _, name, _ in group}) > 1]
    within = [
        group
        for group in groups
        if max(Counter((split, name) for _, split, name, _ in group).values()) > 1
    ]
    findings = []
    for severity, kind, chosen, words, remedy in (
        ("error", "duplicates-across-splits", across, "in several splits",
         "keep each in one split, as split_data.py does"),
        ("error", "duplicates-with-conflicting-labels", conflicting, "in several classes",
         "keep each in its correct class only"),
        ("warning", "duplicates", within, "several times in one class",
         "remove the copies, or use split_data.py, which keeps them in one split"),
    ):  # fmt: skip
        if chosen:
            text = f"{number(len(chosen), 'picture')} {words}, identical pixel for pixel"
            paths = [[path for path, *_ in group] for group in chosen]
            names = [", ".join(sorted({name for _, _, name, _ in group})) for group in chosen]
            findings.append(Finding(severity, kind, text, remedy, causes=names, groups=paths))
    return findings


def classes(
    counts: dict[str, dict[str, int]], all_counts: dict[str, dict[str, int]]
) -> list[Finding]:
    """Classes without enough pictures, or with many more than others.

    Args:
        counts: number of readable pictures per split and class.
        all_counts: the same including unreadable pictures.
    """
    findings = []
    for split in counts:
        lost = [name for name, n in counts[split].items() if all_counts[split][name] and not n]
        if lost:
            text = f"{split}: {number(len(lost), 'class')} without a readable picture"
            remedy = "replace the pictures or remove the class"
            findings.append(Finding("error", "unreadable-class", text, remedy, lost))
    train = {name: n for name, n in counts.get("train", {}).items() if n}
    least = 2 if "val" in counts else FEW_TO_SPLIT
    few = {name: n for name, n in train.items() if n < least}
    if few:
        why = "" if "val" in counts else ", too few for training and validation"
        text = f"{number(len(few), 'class')} with fewer than {least} pictures{why}"
        sizes = [number(n, "picture") for n in few.values()]
        findings.append(Finding("warning", "tiny-class", text, "add pictures", list(few), sizes))
    if train and max(train.values()) >= UNBALANCED * min(train.values()):
        ends = [max(train, key=train.__getitem__), min(train, key=train.__getitem__)]
        ratio = train[ends[0]] / train[ends[1]]
        text = f"unbalanced: the largest class has {ratio:.1f} times the pictures of the smallest"
        sizes = [number(train[name], "picture") for name in ends]
        remedy = "add pictures to small classes, and look at the accuracy of each class"
        findings.append(Finding("warning", "unbalanced", text, remedy, ends, sizes))
    for split in counts:
        absent = [name for name in train if not counts[split][name]]
        if absent:
            text = f"{split}: no pictures of {number(len(absent), 'class')}"
            remedy = f"add some, or the {split} metrics will not cover these classes"
            findings.append(Finding("warning", "class-not-in-split", text, remedy, absent))
    return findings


def alike(names: Iterable[str], severity: str, what: str) -> list[Finding]:
    """Names that are the same on some systems: they differ only by case or Unicode composition."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_key[unicodedata.normalize("NFC", os.path.normcase(name).casefold())].append(name)
    groups = [group for group in by_key.values() if len(group) > 1]
    if not groups:
        return []
    text = f"names of {what} that differ only by case or by Unicode composition"
    remedy = "rename them, or merge them if they are the same"
    return [Finding(severity, f"alike-{what}", text, remedy, groups=groups)]
