"""What may be wrong with a data set, from its listing and what is known of its pictures."""

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
from kansformer.words import number

SEVERITIES = ("error", "warning", "note")
FEW_TO_SPLIT = 5  # with fewer, the default --val-split of a fifth gives validation none
UNBALANCED = 10  # times as many pictures in the largest class as in the smallest
# what each kind of PictureError means for a data set
BROKEN = {
    "damaged": "damaged, cannot be decoded to the end",
    "not-a-picture": "not a picture of a known format",
    "too-many-pixels": "more pixels than the limit",
    "too-many-bytes": "more bytes than the limit",
    "link-to-nowhere": "links to files that are not there",
    "missing": "gone since they were listed",
    "unreadable": "cannot be read",
    "no-file": "pipes, sockets or devices",
    "folder": "folders",
    "out-of-range": "values that are not known to be brightness",
}
TELLING = ("damaged", "link-to-nowhere", "too-many-bytes", "unreadable")  # causes differ by file
Picture = tuple[str, str, str, Facts]  # path, split, class, facts


@dataclass(frozen=True)
class Finding:
    """One thing that was found: how bad it is, a fixed word for it, and what to do.

    `error`: training cannot use it, or its figures would be wrong; `warning`: perhaps not meant;
    `note`: dealt with. `files` are all of them; `groups` are those that are equal to each other.
    """

    severity: str
    kind: str
    text: str
    remedy: str
    files: Sequence[str] = ()
    causes: Sequence[str] = ()  # one for each file or group, if they differ
    groups: Sequence[Sequence[str]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value}

    def lines(self, limit: int = 10) -> list[str]:
        """Readable lines, with no more than `limit` files or groups."""
        shown = list(self.files)
        for group in self.groups:
            rest = [f"{len(group) - 4:,} more"] if len(group) > 4 else []
            shown.append(" = ".join([*group[:4], *rest]))
        if self.causes:
            shown = [f"{name}: {cause}" for name, cause in zip(shown, self.causes, strict=True)]
        lines = [f"{self.severity}: {self.text}; {self.remedy}", *(f"  {n}" for n in shown[:limit])]
        return lines + [f"  and {len(shown) - limit} more"] * (len(shown) > limit)


def broken(pictures: Iterable[Picture]) -> list[Finding]:
    """Pictures that training leaves out, by what is wrong with them."""
    kinds: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture[3].kind:
            kinds[picture[3].kind].append(picture)
    return [
        Finding(
            "error",
            kind,
            f"{number(len(found), 'picture')} left out: {BROKEN[kind]}",
            REMEDIES[kind],
            [path for path, *_ in found],
            [facts.cause for *_, facts in found] if kind in TELLING else (),
        )
        for kind, found in sorted(kinds.items())
    ]


def refused(problems: Sequence[Problem]) -> list[Finding]:
    """Problems of the folders, for which training does not begin."""
    kinds: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind, problem.cause, problem.remedy].append(problem.path)
    return [
        Finding("error", kind, f"{number(len(paths), 'folder')}: {cause}", remedy, paths)
        for (kind, cause, remedy), paths in kinds.items()
    ]


def ignored(listing: Listing) -> list[Finding]:
    """What lies there and is not read."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in listing.ignored:
        kinds[_why_ignored(path)].append(path)
    found = []
    if dead := kinds["dead-link"]:
        text = f"{number(len(dead), 'link')} to nowhere, without a picture's name"
        found.append(Finding("warning", "dead-link", text, REMEDIES["link-to-nowhere"], dead))
    if unread := kinds["unread-format"]:
        found.append(unread_formats(unread))
    if system := kinds["system-files"]:
        text = f"{number(len(system), 'file')} or folders of operating systems passed over"
        found.append(Finding("note", "system-files", text, "nothing to do", system))
    if rest := kinds["ignored"]:
        text = f"{number(len(rest), 'file')} or folders not read: no pictures by name or place"
        remedy = "nothing to do, unless they were meant to be pictures"
        found.append(Finding("note", "ignored", text, remedy, rest))
    return found


def passed_over(listing: Listing, data_path: str) -> list[Finding]:
    """What a training should say of `ignored`: a line each, without the files."""
    remedy = f"{doctor(data_path)} lists them"
    return [
        replace(finding, remedy=remedy, files=())
        for finding in ignored(listing)
        if finding.kind in ("unread-format", "system-files")
    ]


def doctor(data_path: str) -> str:
    """The command that says more about a data set."""
    return f"python -m kansformer.data.doctor --data-path {shlex.quote(data_path)}"


def _why_ignored(path: str) -> str:
    if is_dead_link(path):
        return "dead-link"
    if is_system_name(path):
        return "system-files"
    return "unread-format" if has_unread_name(path) else "ignored"


def unread_formats(paths: Sequence[str]) -> Finding:
    """Files named as pictures in formats that are not read."""
    counts = Counter(map(extension, paths)).most_common()
    endings = ", ".join(f"{ending} {count:,}" for ending, count in counts)
    text = f"{number(len(paths), 'picture')} in formats that are not read ({endings})"
    return Finding("warning", "unread-format", text, unread_remedy(paths), paths)


def converted(pictures: Iterable[Picture]) -> list[Finding]:
    """Pictures that reading turns upright, or into 8 bits of grey or colour."""
    tests: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "turned": ("turned upright, by EXIF", lambda s: s.orientation != 1),
        "deep": ("with more than 8 bits a channel", lambda s: s.is_deep),
        "cmyk": ("in CMYK", lambda s: s.mode == "CMYK"),
        "transparent-palette": (
            "with a palette and transparency", lambda s: s.mode == "P" and s.is_transparent,
        ),
        "transparent": ("with transparency", lambda s: s.mode != "P" and s.is_transparent),
    }  # fmt: skip
    found: dict[str, list[str]] = defaultdict(list)
    for path, _, _, facts in pictures:
        for kind, (_, holds) in tests.items():
            if holds(facts.stored):
                found[kind].append(path)
    return [
        Finding(
            "note",
            kind,
            f"{number(len(found[kind]), 'picture')} {words}: converted when read",
            "nothing to do",
            found[kind],
        )
        for kind, (words, _) in tests.items()
        if found[kind]
    ]


def mended(pictures: Sequence[Picture]) -> list[Finding]:
    """Pictures that are read although something is wrong with their files."""
    faulty = [(path, facts.stored.note) for path, _, _, facts in pictures if facts.stored.note]
    if not faulty:
        return []
    text = f"{number(len(faulty), 'picture')} read although something is wrong with the file"
    files, notes = zip(*faulty, strict=True)
    return [Finding("note", "mended", text, "nothing to do", files, notes)]


def scaled(facts: Iterable[Facts]) -> list[Finding]:
    """By which levels pictures of more than 8 bits become brightness."""
    return [
        Finding(
            "note",
            "levels",
            f"pictures of mode {mode}: {low:g} is black and {high:g} is white in all of them",
            "nothing to do, unless they hold no brightness",
        )
        for mode, (low, high) in levels_of(facts).items()
    ]


def levels_of(facts: Iterable[Facts]) -> dict[str, tuple[float, float]]:
    """Levels of a data set, by modes, for its pictures with more than 8 bits (see `open_image`).

    Black is 0, or the least value if that is negative. White is 1 for floats up to 1; else the
    smallest 2**n - 1 of 255, 511, 1023, ... that no value exceeds.
    """
    ends: dict[str, tuple[float, float]] = {}
    for known in facts:
        mode = "I;16" if known.stored.mode.startswith("I;16") else known.stored.mode
        if mode in DEFAULT_LEVELS and not known.kind:
            low, high = ends.get(mode, (0.0, 0.0))
            ends[mode] = min(low, known.stored.low), max(high, known.stored.high)
    return {mode: (low, _white(mode, high)) for mode, (low, high) in ends.items()}


def _white(mode: str, highest: float) -> float:
    if mode == "F" and highest <= 1:
        return 1.0
    return 2.0 ** max(8, math.ceil(highest).bit_length()) - 1 if highest < 2**53 else highest


def duplicates(pictures: Iterable[Picture]) -> list[Finding]:
    """Pictures whose decoded pixels are equal, however their files are named and packed."""
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
    found = []
    for severity, kind, chosen, words, remedy in (
        ("error", "duplicates-across-splits", across, "in several splits",
         "keep each on one side; split_data.py does"),
        ("error", "duplicates-with-conflicting-labels", conflicting, "in several classes",
         "leave each in the right class"),
        ("warning", "duplicates", within, "several times in one class",
         "take copies out, or let split_data.py keep them on one side"),
    ):  # fmt: skip
        if chosen:
            text = f"{number(len(chosen), 'picture')} {words}, equal pixel for pixel"
            paths = [[path for path, *_ in group] for group in chosen]
            names = [", ".join(sorted({name for _, _, name, _ in group})) for group in chosen]
            found.append(Finding(severity, kind, text, remedy, causes=names, groups=paths))
    return found


def classes(counts: dict[str, dict[str, int]], whole: dict[str, dict[str, int]]) -> list[Finding]:
    """Classes without enough pictures, or with many more than others.

    Args:
        counts: for each split and class the number of pictures that can be read.
        whole: the same with the broken ones.
    """
    found = []
    for split in counts:
        lost = [name for name, n in counts[split].items() if whole[split][name] and not n]
        if lost:
            text = f"{split}: no picture can be read of {number(len(lost), 'class')}"
            remedy = "replace the pictures or remove the class"
            found.append(Finding("error", "unreadable-class", text, remedy, lost))
    train = {name: n for name, n in counts.get("train", {}).items() if n}
    least = 2 if "val" in counts else FEW_TO_SPLIT
    few = {name: n for name, n in train.items() if n < least}
    if few:
        why = "" if "val" in counts else ", too few to train on and to validate"
        text = f"{number(len(few), 'class')} with fewer than {least} pictures{why}"
        sizes = [number(n, "picture") for n in few.values()]
        found.append(Finding("warning", "tiny-class", text, "add pictures", list(few), sizes))
    if train and max(train.values()) >= UNBALANCED * min(train.values()):
        ends = [max(train, key=train.__getitem__), min(train, key=train.__getitem__)]
        ratio = train[ends[0]] / train[ends[1]]
        text = f"unbalanced: the largest class has {ratio:.1f} times the pictures of the smallest"
        sizes = [number(train[name], "picture") for name in ends]
        remedy = "add pictures to small classes, and read accuracies class by class"
        found.append(Finding("warning", "unbalanced", text, remedy, ends, sizes))
    for split in counts:
        absent = [name for name in train if not counts[split][name]]
        if absent:
            text = f"{split}: has no pictures of {number(len(absent), 'class')}"
            remedy = "add some, or its figures leave these classes out"
            found.append(Finding("warning", "class-not-in-split", text, remedy, absent))
    return found


def alike(names: Iterable[str], severity: str, what: str) -> list[Finding]:
    """Names that some systems take for one: they differ by case or by how letters are composed."""
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        same[unicodedata.normalize("NFC", os.path.normcase(name).casefold())].append(name)
    groups = [group for group in same.values() if len(group) > 1]
    if not groups:
        return []
    text = f"names of {what} that differ only by case or by Unicode composition"
    remedy = "rename them, or join them if they are the same"
    return [Finding(severity, f"alike-{what}", text, remedy, groups=groups)]
