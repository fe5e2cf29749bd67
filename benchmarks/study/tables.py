"""Draws the study's tables and pictures, from its raw results alone.

    python -m benchmarks.study.tables

Writes tables.md, and a picture of every data set, beside the results.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import ablations, comparison
from benchmarks.study.arms import BASELINE
from benchmarks.study.jobs import Job, read
from benchmarks.study.sets import SETS
from kansformer.compare import (
    accuracy,
    difference_as_text,
    draw,
    paired_interval,
    summarize,
)
from kansformer.errors import UserError, run_command
from kansformer.files import write_bytes

LEGEND = """\
Spread is the standard deviation over seeds. In brackets are 95 % confidence intervals (Student's t)
for the mean paired difference across seeds, on the same test pictures. A step's time, on one
thread, is that of a straight line fitted to the timings of several widths.
"""


def main() -> None:
    """Writes them."""
    parser = argparse.ArgumentParser(description="Tables and pictures of the study.")
    parser.add_argument("--results", type=Path, default=comparison.RESULTS, metavar="DIR")
    folder = parser.parse_args().results
    text, pictures = everything(folder)
    for name, picture in pictures.items():
        write_bytes(folder / f"{name}.png", picture)
    write_bytes(folder / "tables.md", text.encode())
    print(text)


def everything(folder: Path) -> tuple[str, dict[str, bytes]]:
    """All tables, and a PNG for each data set that is complete, by its name.

    Raises:
        UserError: there are no records.
    """
    found = {name: of_set(name, folder) for name in SETS}
    sets = {name: part for name, part in found.items() if part is not None}
    parts = [text for text, _ in sets.values()]
    changes = of_ablations(folder)
    if changes is not None:
        parts.append(changes)
    if not parts:
        raise UserError(f"{folder}: no results; run python -m benchmarks.study.comparison first")
    pictures = {name: draw(runs) for name, (_, runs) in sets.items() if runs}
    return "\n".join([LEGEND, *parts]), pictures


def of_set(name: str, folder: Path) -> tuple[str, list[dict[str, Any]]] | None:
    """The text on a data set and its runs at equal size; None before its first training.

    Until all have been trained the text says that they have not, and there are no runs.
    """
    records, times = read(folder / f"{name}.jsonl"), folder / f"{name}.steps.json"
    if not records:
        return None
    heading = f"### {SETS[name].title}"
    missing = unfinished(heading, f"comparison {name}")
    if not times.is_file() or not comparison.complete(comparison.choosing(name), records):
        return missing, []
    rates = comparison.rates_by_validation(name, records)
    timed = json.loads(times.read_text())
    sizes = comparison.sizes_by_time(timed)
    jobs = {title: comparison.jobs(name, rates, sizes[title]) for title in sizes}
    if not comparison.complete((job for part in jobs.values() for job in part), records):
        return missing, []
    runs = {title: [as_run(job, records[job.key]) for job in part] for title, part in jobs.items()}
    first, machine = runs[comparison.EQUAL_SIZE][0], timed["machine"]
    lines = [
        heading,
        "",
        f"{first['pictures']['train']:,} training, {first['pictures']['val']:,} validation and"
        f" {first['pictures']['test']:,} test pictures; test accuracy in %, {SETS[name].seeds}"
        f" seeds, {first['epochs']} epochs; steps on {machine['device']}, torch"
        f" {machine['torch']}.",
        "",
        "| at | blocks | n | mean | spread | against mlp | parameters | rate | step, ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for title, some in runs.items():
        for row in summarize(some):
            arm = row["arm"]
            against = difference_as_text(row["difference"], row["interval"])
            against = "" if arm == BASELINE else against
            lines.append(
                f"| {title} | {arm} | {row['n']} | {row['mean']:.2f} | {row['spread']:.2f} |"
                f" {against} | {row['parameters']:,} | {rates[arm]:g} |"
                f" {sizes[title][arm]['step_ms']:.0f} |"
            )
    return "\n".join([*lines, ""]), runs[comparison.EQUAL_SIZE]


def of_ablations(folder: Path) -> str | None:
    """The table of changes, each beside the arm that it changes, with the seeds that it has.

    None before the first training. Until an arm as it is, from which the others differ, has all its
    seeds, the text says that it has not.
    """
    records = read(folder / "ablations.jsonl")
    if not records:
        return None
    heading = "### One change at a time"
    rows = ablations.rows()
    accuracies = {
        (arm, title): {job.seed: accuracy(records[job.key]) for job in jobs if job.key in records}
        for arm, title, jobs in rows
    }
    if any(len(accuracies[arm, ablations.PRESET]) < ablations.SEEDS for arm in ablations.CHANGES):
        return unfinished(heading, "ablations")
    pictures = records[rows[0][2][0].key]["pictures"]
    begun = sum(bool(own) for own in accuracies.values())
    lines = [
        heading,
        "",
        f"{SETS[ablations.DATA].title}: {pictures['train']:,} training and {pictures['val']:,}"
        f" validation pictures; accuracy on these in %, {ablations.SEEDS} seeds, "
        f"{SETS[ablations.DATA].settings['epochs']} epochs. {begun} of {len(rows)} rows have"
        " been begun; n is how many seeds each has.",
        "",
        "| blocks | change | n | mean | spread | against the blocks as they are | against mlp |"
        " parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, title, jobs in rows:
        own = accuracies[arm, title]
        if not own:
            continue
        others = [accuracies[other, ablations.PRESET] for other in (arm, BASELINE)]
        columns = ["" if own is other else paired_difference(own, other) for other in others]
        values = list(own.values())
        parameters = next(records[job.key]["parameters"] for job in jobs if job.key in records)
        spread = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        lines.append(
            f"| {arm} | {title} | {len(own)} | {np.mean(values):.2f} | {spread} |"
            f" {columns[0]} | {columns[1]} | {parameters:,} |"
        )
    return "\n".join([*lines, ""])


def unfinished(heading: str, script: str) -> str:
    """What stands for a table while trainings are missing."""
    command = f"python -m benchmarks.study.{script}"
    return f"{heading}\n\nNot complete: `{command}` trains what is missing.\n"


def paired_difference(accuracies: dict[int, float], others: dict[int, float]) -> str:
    """The mean of the first less the second, over the first's seeds, with its interval."""
    apart = [own - others[seed] for seed, own in accuracies.items()]
    return difference_as_text(float(np.mean(apart)), paired_interval(apart))


def as_run(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """A record as `kansformer.compare` has its runs."""
    return {**record, "arm": job.arm, "seed": job.seed, "accuracy": accuracy(record)}


if __name__ == "__main__":
    sys.exit(run_command(main))
