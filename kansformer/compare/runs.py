"""The runs of a comparison: every arm with every seed, one after the other, each in a subfolder."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kansformer.compare.finished import (
    check_record,
    has_state,
    read_record,
    record,
    remove_weights,
)
from kansformer.compare.forecast import Job, plan, progress
from kansformer.compare.statistics import BASELINE, accuracy
from kansformer.data import PictureData
from kansformer.errors import JobFailed, UserError, one_line
from kansformer.train import TrainConfig, train
from kansformer.train.configure import configure
from kansformer.words import number

OF_THE_COMPARISON = ("output", "overwrite", "resume", "seed")  # not of each run


def run_all(
    flags: Mapping[str, Any], arms: Sequence[str], seeds: int, keep_weights: bool = False
) -> tuple[Path, list[dict[str, Any]]]:
    """Trains every arm with every seed.

    With --resume, an interrupted run is continued, and finished ones are not trained again. After
    each run its weights are removed, so that the disk has to hold those of one run only.

    Args:
        flags: the fields of `TrainConfig` that were given.
        seeds: runs of each arm; the first one has --seed, the others count up from it.
        keep_weights: keep the weights and the last state of every run.

    Returns:
        The folder of the comparison, and one record per run: arm, seed, accuracy in percent, and
        the contents of its summary.json.

    Raises:
        UserError: settings or data that cannot be used; with --resume, those of other runs.
        JobFailed: a run has failed; those before it are kept.
    """
    first_seed = flags.get("seed", 0)
    jobs = [(arm, seed) for seed in range(first_seed, first_seed + seeds) for arm in arms]
    overwrite, resume = flags.get("overwrite", False), flags.get("resume", False)
    _, data = configure(flags_of(jobs[0], flags, cache=False), print)  # prints warnings on the data
    folder = Path(flags.get("output") or Path("weights") / f"{data.name}-compare")
    del data
    folders = {(arm, seed): folder / f"{arm}-seed{seed}" for arm, seed in jobs}
    if not (resume or overwrite):
        refuse_earlier(folders.values())
    finished = read_finished(folders, flags) if resume else {}
    print(f"{plan(jobs, len(finished))}; output in {folder}")
    if not keep_weights:
        print("the weights of each run are removed when it is finished; --keep-weights keeps them")

    for job in jobs:
        if job not in finished:
            arm, seed = job
            print(f"\n{arm}, seed {seed}")
            with naming(job, len(finished)):
                # all runs share what training has chosen by itself in the first one
                shared = next(iter(finished.values()))["shared"] if finished else {}
                chosen = {name: value for name, value in shared.items() if name not in flags}
                config, data = configure(flags_of(job, flags))
                continues = resume and has_state(folders[job])
                config = replace(
                    config,
                    output=str(folders[job]),
                    resume=continues,
                    overwrite=overwrite or (resume and not continues),
                )
                finished[job] = run_one(config, chosen, data, keep_weights)
            seconds = {done: entry["seconds"] for done, entry in finished.items()}
            print(progress(seconds, jobs, seconds[job]))
        if not keep_weights:  # also those of an earlier call that was killed before it did this
            remove_weights(folders[job])
    return folder, [as_run(job, finished[job]["summary"]) for job in jobs]


def flags_of(job: Job, flags: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The fields of `TrainConfig` for one run.

    Args:
        flags: that were given for the comparison.
        changes: fields that differ.
    """
    arm, seed = job
    settings = {name: value for name, value in flags.items() if name not in OF_THE_COMPARISON}
    settings.setdefault("report", False)  # nobody reads one per run
    if not settings.get("weights") and "kan_hidden" not in settings:
        settings.setdefault("match", "params")
    if arm == BASELINE:  # its width is the one that the others are matched to
        settings["match"] = "none"
        settings.pop("kan_hidden", None)
        if "tune" in settings:  # it has no splines
            parts = settings["tune"].split(",")
            settings["tune"] = ",".join(part for part in parts if part != "splines")
    return {**settings, "ffn": arm, "seed": seed, **changes}


def refuse_earlier(folders: Iterable[Path]) -> None:
    """Raises a UserError if a folder for a new run has contents."""
    for folder in folders:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"{folder}: holds an earlier run; continue with --resume, replace it with"
                " --overwrite, or choose another --output"
            )


def read_finished(
    folders: Mapping[Job, Path], flags: Mapping[str, Any]
) -> dict[Job, dict[str, Any]]:
    """The records of the runs that are finished.

    Raises:
        UserError: one had other settings or pictures.
    """
    records = {}
    for job, folder in folders.items():
        entry = read_record(folder)
        if entry is not None:
            with naming(job, 0):
                check_record(entry, *configure(flags_of(job, flags, cache=False)))
            records[job] = entry
    return records


def run_one(
    config: TrainConfig, chosen: Mapping[str, Any], data: PictureData, keep_weights: bool
) -> dict[str, Any]:
    """Trains one run and records it.

    Args:
        config: its settings, with output folder, by which a later call recognizes it.
        chosen: settings that it trains with instead, as the runs before it did.

    Returns:
        See `record`.
    """

    def log(line: str) -> None:
        if keep_weights or not line.startswith("next:"):  # that uses the weights
            print(line)

    started = time.monotonic()
    summary = train(replace(config, **chosen), data, log)
    # an interrupted run trained before this call too
    seconds = max(time.monotonic() - started, summary["seconds"])
    return record(Path(str(config.output)), config, data, seconds)


@contextmanager
def naming(job: Job, finished: int) -> Iterator[None]:
    """Adds to an error which run it is about, and how to continue.

    Args:
        finished: number of runs that are finished.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output has left
        raise
    except (UserError, JobFailed, OSError) as error:
        kind = UserError if isinstance(error, UserError) else JobFailed
        text = f"{job[0]}, seed {job[1]}: {one_line(error)}"
        if finished or kind is JobFailed:
            text += (
                f"; {number(finished, 'finished run')} kept: --resume continues with the same"
                " settings or with fewer --arms, --overwrite starts over with others"
            )
        raise kind(text) from error


def as_run(job: Job, summary: dict[str, Any]) -> dict[str, Any]:
    """One run of the comparison, as `summarize` and the plot take it."""
    return {"arm": job[0], "seed": job[1], "accuracy": accuracy(summary), **summary}
