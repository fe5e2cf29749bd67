"""Before training: the data without the pictures that cannot be read."""

import os
from dataclasses import replace
from typing import Any

import numpy as np

from kansformer.data.findings import Finding, broken, number
from kansformer.data.inspection import inspect_files
from kansformer.data.sources import PictureData, Pictures
from kansformer.errors import UserError

AT_MOST = 20_000  # different files; in larger sets the others are not looked at


def usable(
    data: PictureData, at_most: int = AT_MOST, workers: int | None = None
) -> tuple[PictureData, list[Finding]]:
    """Leaves out pictures that cannot be read, and says which.

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
    parts: dict[str, Any] = {
        name: pictures
        for name in ("train", "val", "test")
        if (pictures := getattr(data, name)) is not None and not pictures.in_memory
    }
    paths = [path for pictures in parts.values() for path in pictures.items]
    facts = inspect_files(paths, workers, at_most)
    bad = [
        (path, "", "", known)
        for path, known in zip(paths, facts, strict=True)
        if known is not None and known.kind
    ]
    findings = broken(bad)
    unknown = facts.count(None)
    if unknown:
        text = f"{number(unknown, 'picture')} not looked at, of {len(facts):,}"
        remedy = "python -m kansformer.data.doctor looks at all of them"
        findings.append(Finding("note", "not-looked-at", text, remedy))
    if bad:
        causes = {path: known.cause for path, _, _, known in bad}
        for part, pictures in parts.items():
            parts[part] = pictures.take(
                np.array([i for i, path in enumerate(pictures.items) if path not in causes], int)
            )
            findings += _lost(data.class_names, part, pictures, parts[part], causes)
        data = replace(data, **parts)
    return data, findings


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
