"""Looks a data set over before training, and changes nothing in it.

python -m kansformer.data.doctor --data-path DIR|NAME [--json]

Exit status: 0 if training can use the data (there may be warnings and notes), 1 if something in it
is an error, 2 for bad usage.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

from kansformer.data import findings
from kansformer.data.findings import SEVERITIES, Finding, Picture
from kansformer.data.inspection import inspect_array, inspect_files
from kansformer.data.listing import Listing
from kansformer.data.sources import Pictures, find_data, pictures_of
from kansformer.errors import UserError, run_command
from kansformer.words import number

ROWS = 60  # classes in the printed table; the smallest, if there are more


@dataclass(frozen=True)
class Report:
    """All that was found: pictures by split and class, how they are stored, and findings."""

    name: str
    class_names: tuple[str, ...]
    counts: dict[str, dict[str, int]]  # split -> class -> pictures
    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, int]  # "WIDTHxHEIGHT" -> pictures, as stored
    orientations: dict[int, int]  # EXIF's
    findings: list[Finding]

    @property
    def has_errors(self) -> bool:
        """Whether training cannot use something, or would be wrong."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, with every file."""
        return {**vars(self), "findings": [finding.to_dict() for finding in self.findings]}

    def __str__(self) -> str:
        total = sum(sum(split.values()) for split in self.counts.values())
        lines = [f"{self.name}: {number(len(self.class_names), 'class')}, "
                 f"{number(total, 'picture')}", "", *self._table(), ""]  # fmt: skip
        for what in ("formats", "modes", "orientations"):
            counted = sorted(getattr(self, what).items(), key=lambda item: -item[1])
            lines.append(f"{what}: " + ", ".join(f"{key} {n:,}" for key, n in counted))
        lines.append(f"sizes: {self._sizes()}")
        for finding in self.findings:
            lines += ["", *finding.lines()]
        counted = [
            number(sum(finding.severity == severity for finding in self.findings), severity)
            for severity in SEVERITIES
        ]
        return "\n".join([*lines, "", ", ".join(counted)])

    def _table(self) -> list[str]:
        names = sorted(
            self.class_names, key=lambda name: sum(split[name] for split in self.counts.values())
        )
        shown = [name for name in self.class_names if name in set(names[:ROWS])]
        width = max(map(len, [*shown, "all classes"]))
        lines = [" " * width + "".join(f"{split:>10}" for split in self.counts)]
        for name in shown:
            row = "".join(f"{split[name]:>10,}" for split in self.counts.values())
            lines.append(f"{name:<{width}}{row}")
        if len(names) > ROWS:
            lines.append(f"and {number(len(names) - ROWS, 'class')} with more pictures")
        row = "".join(f"{sum(split.values()):>10,}" for split in self.counts.values())
        return [*lines, f"{'all classes':<{width}}{row}"]

    def _sizes(self) -> str:
        if not self.sizes:
            return "none known"
        sizes = {tuple(map(int, size.split("x"))): n for size, n in self.sizes.items()}
        ordered = sorted(sizes, key=lambda size: size[0] * size[1])
        middle = statistics.median(min(size) for size, n in sizes.items() for _ in range(n))
        first, last = ("x".join(map(str, size)) for size in (ordered[0], ordered[-1]))
        return f"{first} to {last}, shorter side {middle:g} in the median"


def examine(
    data_path: str,
    workers: int | None = None,
    download: bool = False,
    download_dir: str = "data",
) -> Report:
    """Decodes every picture of a data set and says what is wrong with it; writes nothing there.

    Args:
        data_path, download, download_dir: as for `load_data`; folders that it refuses, too.
        workers: processes that decode; None for one per CPU.

    Raises:
        UserError: there is no such data, or an original file of a known data set is damaged.
    """
    data = find_data(data_path, download, download_dir)
    parts: dict[str, Pictures]
    if isinstance(data, Listing):
        parts = {
            split: pictures_of(found, data.class_names) for split, found in data.splits.items()
        }
        found = [*findings.refused(data.problems), *findings.ignored(data)]
        found += findings.alike(data.class_names, "warning", "classes")
    else:
        parts = data.splits
        found = []
    names = data.class_names
    pictures = look_at(parts, names, workers)
    good = [picture for picture in pictures if not picture[3].kind]
    whole, counts = count(pictures, parts, names), count(good, parts, names)
    found += findings.broken(pictures)
    found += findings.duplicates(good)
    found += findings.classes(counts, whole)
    found += findings.alike((path for path, *_ in pictures), "note", "files")
    found += findings.converted(good)
    found += findings.scaled(facts for _, split, _, facts in good if split == "train")
    found += findings.mended(good)
    stored = [facts.stored for *_, facts in good]
    return Report(
        data.name,
        names,
        whole,
        formats=dict(Counter(s.format for s in stored)),
        modes=dict(Counter(s.mode for s in stored)),
        sizes=dict(Counter(f"{s.width}x{s.height}" for s in stored)),
        orientations=dict(Counter(s.orientation for s in stored)),
        findings=sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)),
    )


def look_at(
    parts: dict[str, Pictures], class_names: tuple[str, ...], workers: int | None
) -> list[Picture]:
    """Every picture of all splits, with its facts."""
    files = [path for part in parts.values() for path in part.items if isinstance(path, str)]
    known = iter(inspect_files(files, workers))
    pictures: list[Picture] = []
    for split, part in parts.items():
        for index, label in enumerate(part.labels.tolist()):
            item = part.items[index]
            facts = next(known) if isinstance(item, str) else inspect_array(item)
            assert facts is not None  # without a limit all are looked at
            name = item if isinstance(item, str) else f"{split}[{index}]"
            pictures.append((name, split, class_names[label], facts))
    return pictures


def count(
    pictures: list[Picture], parts: dict[str, Pictures], names: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Pictures by split and class, zeros too."""
    found = Counter((split, name) for _, split, name, _ in pictures)
    return {split: {name: found[split, name] for name in names} for split in parts}


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(
        "python -m kansformer.data.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data-path", required=True, metavar="DIR|NAME", help="as for train.py; only read"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with all files")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per CPU)")
    parser.add_argument(
        "--download", action=argparse.BooleanOptionalAction, default=False,
        help="fetch a built-in data set that is not there",
    )  # fmt: skip
    parser.add_argument(
        "--download-dir", default="data", metavar="DIR", help="where built-in data sets lie"
    )
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    report = examine(args.data_path, args.workers, args.download, args.download_dir)
    print(json.dumps(report.to_dict(), indent=1) if args.json else report)
    return 1 if report.has_errors else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
