"""Repeats the study's rows of one data set, at equal size, and compares them with the stated ones.

    python -m benchmarks.study.repeat digits

Every model trains anew with the first seeds, at the learning rates that the study chose. A mean
agrees if it is within the stated spread of the stated one, which is that of all seeds; the exit
status is 1 if one does not.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.study import comparison
from benchmarks.study.jobs import read, run
from benchmarks.study.sets import SETS
from benchmarks.study.tables import as_run
from kansformer.compare import summarize
from kansformer.errors import UserError, run_command


def main() -> int:
    """Trains, and says of each model whether it agrees."""
    parser = argparse.ArgumentParser(description="Repeats the rows of one data set.")
    parser.add_argument("set", choices=SETS, metavar="SET", help=", ".join(SETS))
    comparison.add_flags(parser)
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N",
        help="how many of the stated seeds, the first ones (default 5)",
    )  # fmt: skip
    options = parser.parse_args()
    if options.seeds < 2:
        raise UserError(f"--seeds must be at least 2, for a spread, not {options.seeds}")
    stated = read(options.results / f"{options.set}.jsonl")
    jobs = comparison.choosing(options.set)
    if comparison.complete(jobs, stated):
        rates = comparison.rates_by_validation(options.set, stated)
        jobs = comparison.jobs(options.set, rates, comparison.FULL)
    if not comparison.complete(jobs, stated):
        raise UserError(f"{options.results}: no complete results on {options.set} to compare with")
    first = [job for job in jobs if job.seed < options.seeds]
    with tempfile.TemporaryDirectory() as folder:
        anew = run(first, Path(folder) / "anew.jsonl", options.places, options.at_once)
    befores = summarize([as_run(job, stated[job.key]) for job in jobs])
    afters = summarize([as_run(job, anew[job.key]) for job in first])
    agree = True
    for before, after in zip(befores, afters, strict=True):
        near = abs(before["mean"] - after["mean"]) <= before["spread"]
        agree &= near
        print(
            f"{after['arm']}: {after['mean']:.2f} % (spread {after['spread']:.2f}), stated"
            f" {before['mean']:.2f} ({before['spread']:.2f}): {'agrees' if near else 'differs'}"
        )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
