"""What of a KAN's design helps: one change at a time of each KAN that the study compares.

    python -m benchmarks.study.ablations

All train on a third of Fashion-MNIST's training pictures and are judged by others of them; test
pictures play no part. It goes on where it was cut off.
"""

import argparse
import sys
from typing import Any

from benchmarks.study.arms import BASELINE
from benchmarks.study.comparison import add_flags, job_of
from benchmarks.study.jobs import Job, run
from kansformer.errors import run_command

DATA, SEEDS = "fashion-mnist-20k", 3
PRESET = "as it is"
# How many times the learning rate splines have: the defaults, by name, so that a row stays what it
# is if one of them changes.
SPLINE_RATES = {"group-kan": 10.0, "kan": 1.0, "vision_kansformer": 1.0}
# By arm and title, what is different from the arm.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    BASELINE: {PRESET: {}},
    "group-kan": {
        PRESET: {},
        "splines stay as they start": {"spline_lr": 0.0},
        "splines at 1 times the rate": {"spline_lr": 1.0},
        "splines at 30 times the rate": {"spline_lr": 30.0},
        "splines decay as weights do": {"spline_decay": 0.05},
        "order 2, 5 intervals": {"spline_order": 2, "grid_size": 5},
        "order 1, 8 intervals": {"spline_order": 1, "grid_size": 8},
        "16 intervals": {"grid_size": 16},
        "grid from -2 to 2": {"grid_range": (-2.0, 2.0)},
        "grids fitted to the first pictures": {"calibrate_grid": True},
        "grids refined, 4 to 8 intervals": {"grid_size": 4, "refine_grid": ((2, 8),)},
        "1 spline for all channels": {"groups": 1},
        "32 splines": {"groups": 32},
        "SiLU for GELU": {"base_activation": ("identity", "silu")},
        "splines' size in the loss": {"spline_penalty": 1e-4},
        "grid from -2 to 2, splines at 30 times the rate": {
            "grid_range": (-2.0, 2.0), "spline_lr": 30.0,
        },
        "the same, and SiLU for GELU": {
            "grid_range": (-2.0, 2.0), "spline_lr": 30.0, "base_activation": ("identity", "silu"),
        },
    },
    "kan": {
        PRESET: {},
        "splines stay as they start": {"spline_lr": 0.0},
        "splines at 10 times the rate": {"spline_lr": 10.0},
        "splines decay as weights do": {"spline_decay": 0.05},
        "order 2, 3 intervals": {"spline_order": 2, "grid_size": 3},
        "order 1, 2 intervals": {"spline_order": 1, "grid_size": 2},
        "10 intervals": {"grid_size": 10},
        "grid from -1 to 1": {"grid_range": (-1.0, 1.0)},
        "grids fitted to the first pictures": {"calibrate_grid": True},
        "grids refined, 3 to 5 intervals": {"grid_size": 3, "refine_grid": ((2, 5),)},
        "no norm between its layers": {"kan_norm": False},
        "efficient-kan's start": {"kan_init": "efficient-kan"},
        "splines' size in the loss": {"spline_penalty": 1e-4},
    },
    "vision_kansformer": {PRESET: {}},
}  # fmt: skip


def main() -> None:
    """Trains what has no record yet."""
    parser = argparse.ArgumentParser(description="Trains for the table of ablations.")
    add_flags(parser)
    options = parser.parse_args()
    path = options.results / "ablations.jsonl"
    by_seed = zip(*(jobs for _, _, jobs in rows()), strict=True)  # early on there is one of each
    todo = [job for jobs in by_seed for job in jobs]
    run(todo, path, options.places, options.at_once)


def rows() -> list[tuple[str, str, list[Job]]]:
    """Arm, title of the change, and its training with each seed."""
    return [
        (arm, title, [_job(arm, seed, change) for seed in range(SEEDS)])
        for arm, changes in CHANGES.items()
        for title, change in changes.items()
    ]


def _job(arm: str, seed: int, change: dict[str, Any]) -> Job:
    rate = {"spline_lr": SPLINE_RATES[arm]} if arm in SPLINE_RATES else {}
    return job_of(DATA, arm, seed, {**rate, **change}, test=False)


if __name__ == "__main__":
    sys.exit(run_command(main))
