"""Before training: the data without the pictures that cannot be read."""

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
    parts: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        pictures = getattr(data, name)
        if pictures is not None and not pictures.in_memory:
            parts[name] = pictures
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
        good = np.array([known is None or not known.kind for known in facts])
        for name, pictures in parts.items():
            kept, good = good[: len(pictures)], good[len(pictures) :]
            parts[name] = _left(data, name, pictures, kept, findings)
        data = replace(data, **parts)
    return data, findings


def _left(
    data: PictureData, part: str, pictures: Pictures, kept: np.ndarray, findings: list[Finding]
) -> Pictures:
    """The pictures that are kept, if they are enough."""
    left = pictures.take(np.flatnonzero(kept))
    before, after = (
        np.bincount(p.labels, minlength=len(data.class_names)) for p in (pictures, left)
    )
    lost = np.flatnonzero((before > 0) & (after == 0))
    example = findings[0]
    why = f"(for instance {example.files[0]}: {example.causes[0]})"
    remedy = "replace the pictures or take the class out"
    if part == "train" and len(lost):
        name = data.class_names[lost[0]]
        raise UserError(
            f"{pictures.title}: no training picture of class {name} can be read {why}; {remedy}"
        )
    if not len(left):
        raise UserError(f"{pictures.title}: no picture can be read {why}; replace them")
    for label in lost:
        text = f"{part}: no picture of class {data.class_names[label]} can be read"
        findings.append(Finding("warning", "unreadable-class", text, remedy))
    return left
