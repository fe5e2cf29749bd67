"""Trainings of the study: several at a time, each a record in a file of JSON lines.

A job whose record is there is not done again, so a study that was cut off goes on where it was.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.study.sets import SETS
from kansformer.errors import UserError
from kansformer.train import TrainConfig, train
from kansformer.train.distributed import discard

KEPT = ("epoch", "train_loss", "val_loss", "val_acc1", "seconds")  # of each epoch


@dataclass(frozen=True)
class Job:
    """One training; `settings` are all fields of `TrainConfig` that are not its defaults.

    Without `test` the test pictures are never looked at: for whatever is chosen by validation.
    """

    data: str  # one of SETS
    arm: str
    seed: int
    settings: dict[str, Any]
    test: bool = True

    @property
    def key(self) -> str:
        """What makes it this job, as text."""
        return json.dumps(asdict(self), sort_keys=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Records by the key of their job; a line that was cut off is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[Job(**record["job"]).key] = record
    return found


def append(record: dict[str, Any], path: Path) -> None:
    """Adds a line, behind one that was cut off too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(max(file.tell() - 1, 0))
        cut_off = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * cut_off + json.dumps(record).encode() + b"\n")


def run(jobs: Iterable[Job], path: Path, places: Path, at_once: int) -> dict[str, dict[str, Any]]:
    """Does the jobs that have no record yet, and returns the records of all.

    Args:
        path: the file of records; each is appended as soon as there is one.
        places: folder of the pictures, see `sets`.
        at_once: trainings that run side by side, with one thread each.

    Raises:
        UserError: less than one at once. Where a training fails, the rest is not begun.
    """
    if at_once < 1:
        raise UserError(f"--at-once must be at least 1, not {at_once}")
    records = read(path)
    wanted = {job.key: job for job in jobs}  # each once
    todo = [job for key, job in wanted.items() if key not in records]
    os.environ["TQDM_DISABLE"] = "1"  # bars of several trainings would overwrite each other
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
        running = {pool.submit(record_of, job, places): job for job in todo}
        try:
            for number, done in enumerate(as_completed(running), start=1):
                job, record = running[done], done.result()
                append(record, path)
                records[job.key] = record
                accuracy = record.get("test_acc1", record["val_acc1"])
                print(
                    f"{number}/{len(todo)}  {job.data} {job.arm} seed {job.seed} rate"
                    f" {job.settings['lr']:g}: {accuracy:.2f} % in {record['seconds']:.0f} s",
                    flush=True,
                )
        finally:
            pool.shutdown(cancel_futures=True)
    return {key: records[key] for key in wanted}


def record_of(job: Job, places: Path) -> dict[str, Any]:
    """Trains, and returns the summary with the course of the epochs and the machine."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = SETS[job.data].load(places, Path(folder) / "data")
        if not job.test:
            data = replace(data, test=None)
        output = Path(folder) / "run"
        config = TrainConfig(
            **job.settings, data_path=data.name, output=str(output), seed=job.seed, report=False
        )
        summary = train(config, data.with_validation(config.val_split, job.seed), discard)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    history = {name: [round(row[name], 4) for row in rows] for name in KEPT}
    return {"job": asdict(job), **summary, "history": history, "machine": measure.machine("cpu")}
