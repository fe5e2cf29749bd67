"""Before training: the data without the pictures that cannot be read, and what else to know."""

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

AT_MOST = 20_000  # different files; in larger sets the others are not looked at
FEW_TO_VALIDATE = 10  # pictures: with fewer, one is more than ten percent


def usable(
    data: PictureData, at_most: int = AT_MOST, workers: int | None = None
) -> tuple[PictureData, list[Finding]]:
    """Leaves out pictures that cannot be read, says which, and sets the levels of the others.

    What is decoded once is remembered (`inspect_files`), so a second run costs little; pictures in
    memory cost nothing. The outcome depends on the files alone, so that a resumed run sees the
    same pictures. Best called before `with_validation`, which then splits good pictures only.

    Args:
        at_most: look at no more than so many files, spread evenly; that others were not looked at
            is one of the findings.
        workers: processes that decode; None for one per CPU.

    Raises:
        UserError: a class has no training picture left, or a split has no picture left.
    """
    parts = {name: part for name, part in data.splits.items() if not part.in_memory}
    paths = [path for pictures in parts.values() for path in pictures.items]
    looked_at = inspect_files(paths, workers, at_most)
    facts = {path: known for path, known in zip(paths, looked_at, strict=True) if known}
    causes = {path: known.cause for path, known in facts.items() if known.kind}
    findings = [*data.findings, *broken((path, "", "", facts[path]) for path in causes)]
    if len(facts) < len(set(paths)):
        unknown = len(set(paths)) - len(facts)
        text = f"{number(unknown, 'picture')} not looked at, of {len(set(paths)):,}"
        remedy = "python -m kansformer.data.doctor looks at all of them"
        findings.append(Finding("note", "not-looked-at", text, remedy))
    if causes:
        changed: dict[str, Any] = {}
        for part, pictures in parts.items():
            changed[part] = pictures.take(
                np.array([i for i, path in enumerate(pictures.items) if path not in causes], int)
            )
            findings += _lost(data.class_names, part, pictures, changed[part], causes)
        data = replace(data, **changed)
    digests = {path: known.digest for path, known in facts.items() if known.digest}
    training = [] if data.train.in_memory else data.train.items
    levels = levels_of(facts[path] for path in training if path in facts)
    return replace(data, digests=digests).with_levels(levels), findings


def concerns(data: PictureData, data_path: str) -> list[Finding]:
    """What training and its figures may suffer from in the splits of data, in a line each.

    Args:
        data: as `usable` and `with_validation` give it.
    """
    remedy = f"{doctor(data_path)} says more"
    pictures: list[Picture] = [
        (path, split, data.class_names[label], Facts(digest=data.digests[path]))
        for split, part in data.splits.items()
        for path, label in zip(part.items, part.labels.tolist(), strict=True)
        if isinstance(path, str) and path in data.digests
    ]
    found = [
        Finding("warning", finding.kind, finding.text, remedy)
        for finding in duplicates(pictures)
        if finding.severity == "error"
    ]
    if data.val is not None:
        validating = np.bincount(data.val.labels, minlength=len(data.class_names))
        if len(data.val) < FEW_TO_VALIDATE:
            text = f"{number(len(data.val), 'validation picture')}: its accuracy tells little"
            found.append(Finding("warning", "few-to-validate", text, "add pictures"))
        elif not validating.all():
            names = [data.class_names[label] for label in np.flatnonzero(validating == 0)]
            text = f"no validation picture of {number(len(names), 'class')}, such as {names[0]}"
            found.append(Finding("warning", "class-not-in-split", text, "add pictures"))
    return found


def _lost(
    class_names: tuple[str, ...], part: str, pictures: Pictures, left: Pictures,
    causes: dict[str, str],
) -> list[Finding]:  # fmt: skip
    """Classes of which nothing is left; a UserError where that cannot be trained or measured."""
    found = []
    for label in sorted({*pictures.labels.tolist()} - {*left.labels.tolist()}):
        example = pictures.name(pictures.labels.tolist().index(label))
        text = (
            f"no picture of class {class_names[label]} can be read"
            f" (for instance {os.path.basename(example)}: {causes[example]})"
        )
        remedy = "replace the pictures or take the class out"
        if part == "train" or not len(left):
            raise UserError(f"{pictures.title}: {text}; {remedy}")
        found.append(Finding("warning", "unreadable-class", f"{part}: {text}", remedy))
    return found
