"""The check before training: leaves out unreadable pictures and reports problems of the data."""

import os
from dataclasses import replace
from typing import Any

import numpy as np

from kansformer.data.findings import (
    Finding,
    Picture,
    broken,
    doctor,
    duplicates,
    levels_of,
)
from kansformer.data.inspection import Facts, inspect_files
from kansformer.data.sources import PictureData, Pictures
from kansformer.errors import UserError
from kansformer.words import number

AT_MOST = 20_000  # distinct files to check; in larger data sets the others are not checked
FEW_TO_VALIDATE = 10  # pictures: with fewer, each is worth more than ten percent


def usable(
    data: PictureData, at_most: int = AT_MOST, workers: int | None = None
) -> tuple[PictureData, list[Finding]]:
    """Leaves out unreadable pictures, lists them as findings, and sets the levels of the others.

    Results are cached on disk (`inspect_files`), so a second run is fast; pictures in memory are
    not checked. The result depends on the files alone, so a resumed run sees the same pictures.
    Call it before `with_validation`, so that only readable pictures are split.

    Args:
        at_most: check at most this many files, spread evenly; a finding reports how many were not
            checked.
        workers: processes that decode; None for one per CPU.

    Raises:
        UserError: a class has no training picture left, or a split has no picture left.
    """
    parts = {name: part for name, part in data.splits.items() if not part.in_memory}
    paths = [path for pictures in parts.values() for path in pictures.items]
    results = inspect_files(paths, workers, at_most)
    facts = {path: result for path, result in zip(paths, results, strict=True) if result}
    causes = {path: result.cause for path, result in facts.items() if result.kind}
    findings = [*data.findings, *broken((path, "", "", facts[path]) for path in causes)]
    if len(facts) < len(set(paths)):
        total = len(set(paths))
        text = f"{total - len(facts):,} of {total:,} pictures not checked"
        remedy = "to check all of them, run python -m kansformer.data.doctor"
        findings.append(Finding("note", "not-looked-at", text, remedy))
    if causes:
        changed: dict[str, Any] = {}
        for part, pictures in parts.items():
            changed[part] = pictures.take(
                np.array([i for i, path in enumerate(pictures.items) if path not in causes], int)
            )
            findings += _lost(data.class_names, part, pictures, changed[part], causes)
        data = replace(data, **changed)
    digests = {path: result.digest for path, result in facts.items() if result.digest}
    training = [] if data.train.in_memory else data.train.items
    levels = levels_of(facts[path] for path in training if path in facts)
    return replace(data, digests=digests).with_levels(levels), findings


def concerns(data: PictureData, data_path: str) -> list[Finding]:
    """Problems of the splits that may distort the metrics, as findings of one line each.

    Args:
        data: as returned by `usable` and `with_validation`.
    """
    remedy = f"for details, run {doctor(data_path)}"
    pictures: list[Picture] = [
        (path, split, data.class_names[label], Facts(digest=data.digests[path]))
        for split, part in data.splits.items()
        for path, label in zip(part.items, part.labels.tolist(), strict=True)
        if isinstance(path, str) and path in data.digests
    ]
    findings = [
        Finding("warning", finding.kind, finding.text, remedy)
        for finding in duplicates(pictures)
        if finding.severity == "error"
    ]
    if data.val is not None:
        counts = np.bincount(data.val.labels, minlength=len(data.class_names))
        if len(data.val) < FEW_TO_VALIDATE:
            total = number(len(data.val), "validation picture")
            text = f"only {total}, so the validation accuracy is unreliable"
            findings.append(Finding("warning", "few-to-validate", text, "add pictures"))
        elif not counts.all():
            names = [data.class_names[label] for label in np.flatnonzero(counts == 0)]
            text = f"no validation picture of {number(len(names), 'class')}, such as {names[0]}"
            findings.append(Finding("warning", "class-not-in-split", text, "add pictures"))
    return findings


def _lost(
    class_names: tuple[str, ...], part: str, pictures: Pictures, left: Pictures,
    causes: dict[str, str],
) -> list[Finding]:  # fmt: skip
    """Classes left without pictures; a UserError if one is in "train" or the split is empty."""
    findings = []
    for label in sorted({*pictures.labels.tolist()} - {*left.labels.tolist()}):
        example = pictures.name(pictures.labels.tolist().index(label))
        text = (
            f"no picture of class {class_names[label]} can be read"
            f" (for instance {os.path.basename(example)}: {causes[example]})"
        )
        remedy = "replace the pictures or remove the class"
        if part == "train" or not len(left):
            raise UserError(f"{pictures.title}: {text}; {remedy}")
        findings.append(Finding("warning", "unreadable-class", f"{part}: {text}", remedy))
    return findings
