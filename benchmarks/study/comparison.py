"""KAN models and their MLP twin on one data set: at equal size, and at equal training time.

    python -m benchmarks.study.comparison digits

First each model's learning rate is chosen, by validation, from the same few. Then steps of all
models are timed in turns, also with narrower blocks; at equal training time a model has the widest
ones with which a step takes no longer than the MLP's, and so the same epochs and batches, and the
rate that was chosen at full width. Then all train with every seed. Test pictures play no part in
what is chosen. It goes on where it was cut off.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from numpy.polynomial import Polynomial

from benchmarks import measure
from benchmarks.bench_step import training_step
from benchmarks.study.arms import ARMS, BASELINE, RATES
from benchmarks.study.jobs import Job, run
from benchmarks.study.sets import SETS
from kansformer.data import PictureData
from kansformer.device import usable_cores
from kansformer.errors import run_command
from kansformer.files import write_json
from kansformer.train import TrainConfig
from kansformer.train.build import build_model
from models.vit_model import VisionTransformer, ViTConfig

RESULTS = Path(__file__).parent / "results"
CHOOSING_SEED = 100  # the first; none of those that are compared
ROUNDS = 40  # of timed steps
SLOWER = 1.02  # of two steps that count as equally long
EQUAL_SIZE, EQUAL_TIME = "equal size", "equal training time"

Records = Mapping[str, dict[str, Any]]
Sizes = Mapping[str, dict[str, Any]]  # by arm: "settings" of its width, "step_ms" with it
FULL: Sizes = {arm: {"settings": {}} for arm in ARMS}


def main() -> None:
    """Trains what has no record yet."""
    parser = argparse.ArgumentParser(description="Trains for the table of one data set, or more.")
    parser.add_argument("sets", nargs="+", choices=SETS, metavar="SET", help=", ".join(SETS))
    add_flags(parser)
    options = parser.parse_args()
    for name in options.sets:
        path = options.results / f"{name}.jsonl"
        records = run(choosing(name), path, options.places, options.at_once)
        rates = rates_by_validation(name, records)
        print(f"{name}: rates {rates}")
        times = options.results / f"{name}.steps.json"
        if not times.is_file():
            write_json(times, step_times(name, options.places))
        sizes = sizes_by_time(json.loads(times.read_text()))
        todo = [job for title in sizes for job in jobs(name, rates, sizes[title])]
        run(todo, path, options.places, options.at_once)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What all scripts of the study that train can be told."""
    parser.add_argument(
        "--places", type=Path, default=Path("data"), metavar="DIR",
        help="folder with cifar10-jpeg/, sign-digits/ and, where Debian's package is not installed,"
        " fashion-mnist/ (default data)",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR",
        help="folder of the records (default: the stated results)",
    )  # fmt: skip
    parser.add_argument(
        "--at-once", type=int, default=usable_cores(), metavar="N",
        help="trainings side by side, a thread each (default one per core)",
    )  # fmt: skip


def choosing(name: str) -> list[Job]:
    """Trainings by which learning rates are chosen."""
    return [
        job_of(name, arm, CHOOSING_SEED + number, {**SETS[name].choosing, "lr": rate}, test=False)
        for arm in ARMS
        for rate in RATES
        for number in range(SETS[name].choosing_seeds)
    ]


def job_of(name: str, arm: str, seed: int, own: Mapping[str, Any], *, test: bool = True) -> Job:
    """A training of an arm, with all its settings."""
    return Job(name, arm, seed, {**SETS[name].settings, **ARMS[arm], **own}, test)


def complete(jobs: Iterable[Job], records: Records) -> bool:
    """Whether all have a record."""
    return all(job.key in records for job in jobs)


def rates_by_validation(name: str, records: Records) -> dict[str, float]:
    """The rate with the best mean validation accuracy, by arm; of equal ones, the lower loss."""
    found = defaultdict(list)
    for job in choosing(name):
        record = records[job.key]
        found[job.arm, job.settings["lr"]].append((record["val_acc1"], -record["val_loss"]))
    means = {key: tuple(map(fmean, zip(*own, strict=True))) for key, own in found.items()}
    return {arm: max(RATES, key=lambda rate: means[arm, rate]) for arm in ARMS}


def step_times(name: str, places: Path) -> dict[str, Any]:
    """By arm the "hidden" width, and "step_ms" by that and narrower ones; and the machine.

    A time is the lower quartile, on one thread: what else a machine does can only add to a step.
    """
    torch.set_num_threads(1)
    arms: dict[str, dict[str, Any]] = {}
    steps = {}
    with tempfile.TemporaryDirectory() as folder:
        data = SETS[name].load(places, Path(folder) / "data")
    for arm in ARMS:
        full = _model(name, arm, {}, data).config.ffn_hidden
        arms[arm] = {"hidden": full, "step_ms": {}}
        for hidden in widths(full):
            model = _model(name, arm, of_width(arm, full, hidden), data)
            made, size = model.config, SETS[name].settings["batch_size"]
            shape = size, made.in_chans, made.img_size, made.img_size
            steps[arm, hidden] = training_step(model, shape, made.num_classes, "cpu")
    for (arm, hidden), values in measure.interleaved(steps, ROUNDS, "cpu").items():
        arms[arm]["step_ms"][str(hidden)] = measure.quartiles(values)[0]
    return {"arms": arms, "machine": measure.machine("cpu")}


def widths(full: int) -> list[int]:
    """A hidden width and about seven narrower ones, which are multiples of 8 as fast ones are."""
    step = max(full // 64 * 8, 8)
    return [*range(step, full, step), full]


def sizes_by_time(timed: Mapping[str, Any]) -> dict[str, Sizes]:
    """Sizes at equal size and at equal training time, from what `step_times` found.

    A step's time by width is taken from the straight line through those of all widths: a single
    one is off by some percent.
    """
    arms = timed["arms"]
    lines = {
        arm: Polynomial.fit([int(n) for n in own["step_ms"]], list(own["step_ms"].values()), 1)
        for arm, own in arms.items()
    }
    limit = SLOWER * lines[BASELINE](arms[BASELINE]["hidden"])

    def size(arm: str, hidden: int) -> dict[str, Any]:
        settings = of_width(arm, arms[arm]["hidden"], hidden)
        return {"settings": settings, "step_ms": float(lines[arm](hidden))}

    def widest(arm: str) -> int:
        timed_widths = [int(hidden) for hidden in arms[arm]["step_ms"]]
        fitting = [hidden for hidden in timed_widths if lines[arm](hidden) <= limit]
        return max(fitting, default=min(timed_widths))

    return {
        EQUAL_SIZE: {arm: size(arm, arms[arm]["hidden"]) for arm in arms},
        EQUAL_TIME: {arm: size(arm, widest(arm)) for arm in arms},
    }


def _model(
    name: str, arm: str, settings: Mapping[str, Any], data: PictureData
) -> VisionTransformer:
    config = TrainConfig(**job_of(name, arm, 0, settings).settings, data_path=name)
    return build_model(config, data)[0]


def of_width(arm: str, full: int, hidden: int) -> dict[str, Any]:
    """The settings for blocks with that hidden width, of an arm that has `full` by itself."""
    if hidden == full:
        return {}
    if ARMS[arm]["ffn"] == "kan":
        return {"kan_hidden": hidden, "match": "none"}
    return {"mlp_ratio": ViTConfig.mlp_ratio * hidden / full}


def jobs(name: str, rates: Mapping[str, float], sizes: Sizes) -> list[Job]:
    """Every arm, with every seed."""
    return [
        job_of(name, arm, seed, {**sizes[arm]["settings"], "lr": rates[arm]})
        for seed in range(SETS[name].seeds)
        for arm in ARMS
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
