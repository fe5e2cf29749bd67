"""KAN models and their MLP twin on one data set: at equal size, and at equal training time.

    python -m benchmarks.study.comparison digits

First each model's learning rate is chosen, by validation, from the same few. Then steps of all
models are timed in turns, also with narrower blocks; at equal training time a model has the widest
ones with which a step takes no longer than the MLP's, and so the same epochs and batches. Then all
train with every seed; the test pictures are looked at here for the first time. It goes on where it
was cut off.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

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
        rates = chosen(name, records)
        print(f"{name}: rates {rates}")
        times = options.results / f"{name}.steps.json"
        if not times.is_file():
            write_json(times, step_times(name, options.places))
        timed = json.loads(times.read_text())
        todo = [
            job for title in (EQUAL_SIZE, EQUAL_TIME) for job in jobs(name, rates, timed[title])
        ]
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
    """`Sizes` at equal size and at equal training time, and the machine, on one thread.

    A time is the lower quartile: what else a machine does can only add to a step.
    """
    torch.set_num_threads(1)
    steps, settings = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        data = SETS[name].load(places, Path(folder) / "data", 0)
    for arm in ARMS:
        full = _model(name, arm, {}, data).config.ffn_hidden
        for eighths in range(8, 0, -1) if arm != BASELINE else (8,):
            settings[arm, eighths] = of_width(arm, full, eighths)
            model = _model(name, arm, settings[arm, eighths], data)
            made, size = model.config, SETS[name].settings["batch_size"]
            shape = size, made.in_chans, made.img_size, made.img_size
            steps[arm, eighths] = training_step(model, shape, made.num_classes, "cpu")
    times = measure.interleaved(steps, ROUNDS, "cpu")
    quick = {key: measure.quartiles(values)[0] for key, values in times.items()}
    widths = {arm: fitting_width(arm, quick) for arm in ARMS}
    return {
        title: {
            arm: {"settings": settings[arm, chosen[arm]], "step_ms": quick[arm, chosen[arm]]}
            for arm in ARMS
        }
        for title, chosen in ((EQUAL_SIZE, dict.fromkeys(ARMS, 8)), (EQUAL_TIME, widths))
    } | {"machine": measure.machine("cpu")}


def _model(
    name: str, arm: str, settings: Mapping[str, Any], data: PictureData
) -> VisionTransformer:
    config = TrainConfig(**job_of(name, arm, 0, settings).settings, data_path=name)
    return build_model(config, data)[0]


def of_width(arm: str, full: int, eighths: int) -> dict[str, Any]:
    """The settings for blocks with so many eighths of an arm's hidden width, which is `full`."""
    if eighths == 8:
        return {}
    if ARMS[arm]["ffn"] == "kan":
        return {"kan_hidden": max(round(full * eighths / 8), 1), "match": "none"}
    return {"mlp_ratio": ViTConfig.mlp_ratio * eighths / 8}


def fitting_width(arm: str, step_ms: Mapping[tuple[str, int], float]) -> int:
    """The most eighths with which an arm's step takes no longer than the baseline's; at least 1."""
    limit = SLOWER * step_ms[BASELINE, 8]
    return max((n for own, n in step_ms if own == arm and step_ms[own, n] <= limit), default=1)


def jobs(name: str, rates: Mapping[str, float], sizes: Sizes) -> list[Job]:
    """Every arm, with every seed."""
    return [
        job_of(name, arm, seed, {**sizes[arm]["settings"], "lr": rates[arm]})
        for seed in range(SETS[name].seeds)
        for arm in ARMS
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
