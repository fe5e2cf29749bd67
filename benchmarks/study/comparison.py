"""KAN models and their MLP twin on one data set: at equal size, and at equal training time.

    python -m benchmarks.study.comparison digits

First each model's learning rate is chosen, by validation, from the same few. Then steps of all
models are timed in turns, and those that are slower than the MLP get as many epochs less. Then all
train with every seed; the test pictures are looked at here for the first time. It goes on where it
was cut off.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks import measure
from benchmarks.bench_step import training_step
from benchmarks.study.arms import ARMS, BASELINE, RATES
from benchmarks.study.jobs import Job, run
from benchmarks.study.sets import SETS
from kansformer.device import usable_cores
from kansformer.errors import run_command
from kansformer.files import write_json
from kansformer.train import TrainConfig
from kansformer.train.build import build_model

RESULTS = Path(__file__).parent / "results"
CHOOSING_SEED = 100  # the first; none of those that are compared
ROUNDS = 60  # of timed steps

Records = Mapping[str, dict[str, Any]]


def main() -> None:
    """Trains what has no record yet."""
    parser = argparse.ArgumentParser(description="Trains for the table of one data set, or more.")
    parser.add_argument("sets", nargs="+", choices=SETS, metavar="SET", help=", ".join(SETS))
    add_flags(parser)
    options = parser.parse_args()
    for name in options.sets:
        path = options.results / f"{name}.jsonl"
        records = run(choosing(name), path, options.places, options.at_once)
        rates = chosen(name, records)
        print(f"{name}: rates {rates}")
        times = options.results / f"{name}.steps.json"
        if not times.is_file():
            write_json(times, step_times(name, options.places))
        steps = json.loads(times.read_text())["step_ms"]
        todo = [*equal_size(name, rates), *equal_time(name, rates, steps)]
        run(todo, path, options.places, options.at_once)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What all scripts of the study that train can be told."""
    parser.add_argument(
        "--places", type=Path, default=Path("data"), metavar="DIR",
        help="folder with cifar10-jpeg/ and sign-digits/ (default data)",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
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


def chosen(name: str, records: Records) -> dict[str, float]:
    """The rate with the best mean validation accuracy, by arm; of equal ones, the lower loss."""
    found = defaultdict(list)
    for job in choosing(name):
        record = records[job.key]
        found[job.arm, job.settings["lr"]].append((record["val_acc1"], -record["val_loss"]))
    means = {key: tuple(map(fmean, zip(*own, strict=True))) for key, own in found.items()}
    return {arm: max(RATES, key=lambda rate: means[arm, rate]) for arm in ARMS}


def step_times(name: str, places: Path) -> dict[str, Any]:
    """Milliseconds of a training step on one thread, by arm, and the machine.

    The lower quartile: what else a machine does can only add to a step.
    """
    torch.set_num_threads(1)
    jobs = {}
    with tempfile.TemporaryDirectory() as folder:
        data = SETS[name].load(places, Path(folder) / "data", 0)
    for arm in ARMS:
        config = TrainConfig(**job_of(name, arm, 0, {}).settings, data_path=name)
        model, _, _ = build_model(config, data)
        made = model.config
        shape = config.batch_size, made.in_chans, made.img_size, made.img_size
        jobs[arm] = training_step(model, shape, made.num_classes, "cpu")
    times = measure.interleaved(jobs, ROUNDS, "cpu")
    quick = {arm: measure.quartiles(values)[0] for arm, values in times.items()}
    return {"step_ms": quick, "machine": measure.machine("cpu")}


def equal_size(name: str, rates: Mapping[str, float]) -> list[Job]:
    """Every arm, with every seed."""
    return [
        job_of(name, arm, seed, {"lr": rates[arm]})
        for seed in range(SETS[name].seeds)
        for arm in ARMS
    ]


def equal_time(name: str, rates: Mapping[str, float], steps: Mapping[str, float]) -> list[Job]:
    """The same with as many epochs as take the time of the MLP's."""
    jobs = []
    for job in equal_size(name, rates):
        share = min(1.0, steps[BASELINE] / steps[job.arm])
        epochs = max(1, round(share * job.settings["epochs"]))
        jobs.append(replace(job, settings={**job.settings, "epochs": epochs}))
    return jobs


if __name__ == "__main__":
    sys.exit(run_command(main))
