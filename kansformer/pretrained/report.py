"""The report on loaded weights: what became of every tensor of the file and of the model."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from kansformer.data.preprocessing import Preprocessing
from kansformer.words import number

FILLED = ("loaded", "converted", "resized")  # unchanged; renamed, joined, transposed; resampled


@dataclass(frozen=True)
class Fate:
    """What became of a tensor: one of `FILLED`, "skipped" (file only) or "fresh" (model only)."""

    status: str
    reason: str = ""


@dataclass(frozen=True)
class LoadReport:
    """Where each tensor of a model came from.

    Attributes:
        path, format: the file, and its recognized format.
        file: every tensor of the file. "skipped" is by design, for the reason given; an unexpected
            tensor is an error instead.
        model: every tensor of the model, including buffers (the grids of KANs).
        parameters: numbers of loaded, converted, resized and fresh parameters, which add up to the
            model's. Buffers are not counted.
        preprocessing: the preprocessing of pictures for this model.
        notes: assumptions that a user should know about.
    """

    path: str
    format: str
    file: dict[str, Fate]
    model: dict[str, Fate]
    parameters: dict[str, int]
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()

    @property
    def fresh(self) -> tuple[str, ...]:
        """The model's tensors that the file did not fill."""
        return tuple(name for name, fate in self.model.items() if fate.status == "fresh")

    @property
    def left_out_mlps(self) -> bool:
        """Whether fresh KAN blocks replace the file's MLPs."""
        mlps = {name for name, fate in self.model.items() if ".mlp." in name}
        return bool(mlps) and mlps <= set(self.fresh)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in config.json."""
        return {**asdict(self), "notes": list(self.notes), "fresh": list(self.fresh)}

    def __str__(self) -> str:
        counts = Counter(fate.status for fate in self.model.values())
        first, *others = (*FILLED, "fresh")
        tensors = f"{number(counts[first], 'tensor')} {first}"
        tensors += "".join(f", {counts[status]} {status}" for status in others)
        numbers = ", ".join(f"{count:,} {status}" for status, count in self.parameters.items())
        pixels = self.preprocessing
        return "\n".join(
            [
                f"{self.path}: {self.format}; {tensors}",
                f"  {sum(self.parameters.values()):,} parameters: {numbers}",
                *_by_reason("resized", self.model),
                *_by_reason("fresh", self.model),
                *_by_reason("skipped", self.file),
                f"  pictures: mean {_short(pixels.mean)}, std {_short(pixels.std)},"
                f" crop {pixels.crop_pct:.3g}, {pixels.interpolation}",
                *(f"  note: {note}" for note in self.notes),
            ]
        )


def _by_reason(status: str, fates: dict[str, Fate]) -> list[str]:
    """A line per reason, with the names of its tensors; long lists are shortened."""
    reasons = sorted((fate.reason, name) for name, fate in fates.items() if fate.status == status)
    return [
        f"  {status}: {_listed(names)} ({reason})"
        for reason, group in groupby(reasons, key=lambda pair: pair[0])
        if (names := [name for _, name in group])
    ]


def _listed(names: list[str]) -> str:
    if len(names) <= 4:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more, {len(names)} tensors in all"


def _short(value: float | Iterable[float]) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "/".join(f"{v:.3g}" for v in value)
