"""Checks a data set before training, without changing it.

python -m kansformer.data.doctor --data-path DIR|NAME [--json]

Exit status: 0 if training can use the data (there may be warnings and notes), 1 if there are
errors in it, 2 for bad usage.
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
from kansformer.words import command, number

ROWS = 60  # limit for the printed table, which shows the smallest classes of a larger data set


@dataclass(frozen=True)
class Report:
    """The result: pictures per split and class, statistics of their files, and the findings."""

    name: str
    class_names: tuple[str, ...]
    counts: dict[str, dict[str, int]]  # split -> class -> pictures
    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, int]  # "WIDTHxHEIGHT" -> pictures, as stored
    orientations: dict[int, int]  # EXIF orientation -> pictures
    findings: list[Finding]

    @property
    def has_errors(self) -> bool:
        """Whether there are findings of severity "error"."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; lists every file."""
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
        return f"{first} to {last}, median of the shorter side {middle:g}"


def examine(
    data_path: str,
    workers: int | None = None,
    download: bool = False,
    download_dir: str = "data",
) -> Report:
    """Decodes every picture of a data set and reports all problems; writes nothing to its folder.

    Args:
        data_path, download, download_dir: as for `load_data`; a folder that `load_data` refuses is
            examined too.
        workers: processes that decode; None for one per CPU.

    Raises:
        UserError: there is no such data, or an original file of a known data set is damaged.
    """
    data = find_data(data_path, download, download_dir)
    parts: dict[str, Pictures]
    if isinstance(data, Listing):
        parts = {name: pictures_of(split, data.class_names) for name, split in data.splits.items()}
        results = [*findings.refused(data.problems), *findings.ignored(data)]
        results += findings.alike(data.class_names, "warning", "classes")
    else:
        parts = data.splits
        results = []
    names = data.class_names
    pictures = look_at(parts, names, workers)
    good = [picture for picture in pictures if not picture[3].kind]
    all_counts, counts = count(pictures, parts, names), count(good, parts, names)
    results += findings.broken(pictures)
    results += findings.duplicates(good)
    results += findings.classes(counts, all_counts)
    results += findings.alike((path for path, *_ in pictures), "note", "files")
    results += findings.converted(good)
    results += findings.scaled(facts for _, split, _, facts in good if split == "train")
    results += findings.mended(good)
    stored = [facts.stored for *_, facts in good]
    return Report(
        data.name,
        names,
        all_counts,
        formats=dict(Counter(s.format for s in stored)),
        modes=dict(Counter(s.mode for s in stored)),
        sizes=dict(Counter(f"{s.width}x{s.height}" for s in stored)),
        orientations=dict(Counter(s.orientation for s in stored)),
        findings=sorted(results, key=lambda finding: SEVERITIES.index(finding.severity)),
    )


def look_at(
    parts: dict[str, Pictures], class_names: tuple[str, ...], workers: int | None
) -> list[Picture]:
    """All pictures of all splits, each with its facts."""
    files = [path for part in parts.values() for path in part.items if isinstance(path, str)]
    facts_of_files = iter(inspect_files(files, workers))
    pictures: list[Picture] = []
    for split, part in parts.items():
        for index, label in enumerate(part.labels.tolist()):
            item = part.items[index]
            facts = next(facts_of_files) if isinstance(item, str) else inspect_array(item)
            assert facts is not None  # only with a limit are files skipped
            name = item if isinstance(item, str) else f"{split}[{index}]"
            pictures.append((name, split, class_names[label], facts))
    return pictures


def count(
    pictures: list[Picture], parts: dict[str, Pictures], names: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Number of pictures per split and class, including zeros."""
    counts = Counter((split, name) for _, split, name, _ in pictures)
    return {split: {name: counts[split, name] for name in names} for split in parts}


def main() -> int:
    """Reads the flags and prints the report; returns the exit status."""
    parser = argparse.ArgumentParser(
        command("doctor"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data-path", required=True, metavar="DIR|NAME", help="as for train.py; never written to"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object that lists all files"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per CPU)")
    parser.add_argument(
        "--download", action=argparse.BooleanOptionalAction, default=False,
        help="download a built-in data set that is missing",
    )  # fmt: skip
    parser.add_argument(
        "--download-dir", default="data", metavar="DIR", help="folder of the built-in data sets"
    )
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    report = examine(args.data_path, args.workers, args.download, args.download_dir)
    print(json.dumps(report.to_dict(), indent=1) if args.json else report)
    return 1 if report.has_errors else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
