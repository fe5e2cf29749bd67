"""Measures on this machine, before a run starts, the memory and the time that its steps take.

All measurements leave the run as it was, to the bit: weights, average, optimizer, random states,
and what the loaders read next. Under torchrun all ranks must call these functions; they take the
same steps, and the slowest and the fullest rank count.
"""

import copy
import hashlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from kansformer.data import PictureDataset
from kansformer.device import free_memory, peak_memory, usable_cores
from kansformer.errors import UserError
from kansformer.evaluate import evaluate
from kansformer.memory import ADDRESS_SPACE, OF_ONE_PROCESS, scarcest
from kansformer.train.distributed import Ranks, is_sharded
from kansformer.train.optimizer import make_optimizer, make_scaler
from kansformer.train.run import Run
from kansformer.train.step import compute_gradient, ready_model

PREFETCHED = 2  # batches that torch's loader keeps ready per worker, by default
WORKER_BYTES = 50_000_000  # of a worker process, beyond what it shares with this one
# Resident memory per byte of a CPU's tensors, since the heap keeps gaps between them. Steps of a
# ViT-S at 98 and 280 pixels, of 1 to 64 pictures, took 1.4 to 1.75 bytes per byte with glibc.
HEAP = 1.75
# The same for address space (ulimit -v), of which threads reserve more than they use.
RESERVED = 2.5
SURE = 0.05  # share of the free memory that needs no second measurement
REPEATS = 5  # timed steps, at most
SHARE_OF_RUN = 0.02  # that measuring its time may take
BRIEF = 0.02  # seconds that it may take in any case
LONG = 0.5  # seconds of a step that is long enough to be extrapolated from
SAMPLE = 8  # pictures whose reading is timed
AVERAGE_PER_UPDATE = 0.5  # time of the moving average; it moves half as many bytes as AdamW
WRITING_PER_HASHING = 1.0  # time of writing a saved state, per time of its checksum


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a step takes in addition to what a run holds before its first step."""

    fixed: int  # gradients, moments, copies and loaders: whatever the size of the batch
    pixels: int  # per picture of the batch: pictures read ahead, and mixed
    activations: int  # per picture of a micro-batch
    free: int  # bytes that are free

    def needed(self, batch_size: int, micro_batches: int = 1) -> int:
        """Bytes of a step whose batch is split into micro-batches."""
        pictures = -(-batch_size // micro_batches)
        return self.fixed + batch_size * self.pixels + pictures * self.activations


@dataclass(frozen=True)
class Times:
    """Seconds that the parts of a run take, on the slowest rank."""

    step: float  # an optimizer step, with reading its pictures
    evaluation: float  # of the validation pictures
    saving: float = 0.0  # of the state, once per epoch
    test: float = 0.0  # evaluation of the test pictures


def measure_memory(run: Run) -> StepMemory | None:
    """Measures steps of one and two pictures; None where the device does not tell its memory.

    Larger steps are extrapolated linearly, so that measuring never needs the memory of one.
    """
    config, settings, device = run.config, run.model.config, run.ranks.device
    picture = 4 * settings.in_chans * settings.img_size**2
    free = free_memory(device)
    with unchanged(run):
        one = peak_of_step(run, 1)
        if one is None:
            return None
        one, free = fullest(run.ranks, one, free)
        fixed, _ = fullest(run.ranks, bytes_to_come(run), free)
        per_picture = one
        surely_fits = fixed + config.batch_size * one < SURE * free
        if config.batch_size > 1 and not surely_fits and fixed + 2 * HEAP * one < free:
            two, _ = fullest(run.ranks, peak_of_step(run, 2) or 0, free)
            per_picture = max(two - one, 0)
    mixed = run.mix is not None
    if device.type != "cpu":
        return StepMemory(
            fixed + one - per_picture, picture * (config.accumulate + mixed), per_picture, free
        )
    workers = run.train_loader.num_workers
    scarce = scarcest()
    heap = RESERVED if scarce == ADDRESS_SPACE else HEAP
    if scarce not in OF_ONE_PROCESS:
        fixed += 2 * workers * WORKER_BYTES  # those that read for evaluation stay too
    return StepMemory(
        fixed + int(heap * (one - per_picture)),
        picture * (PREFETCHED * workers + config.accumulate + mixed),
        int(heap * per_picture),
        free,
    )


def bytes_to_come(run: Run) -> int:
    """Bytes of gradients, moments and copies that a run will hold and does not hold yet.

    The gradient of several ranks is held twice, by DDP. A fresh run on a CPU keeps a copy of its
    initial state.
    """
    ddp = run.ranks.world > 1 and not is_sharded(run.model)
    total = 0
    for parameter in run.model.parameters():
        size = local_bytes(parameter)
        if parameter.requires_grad:
            total += size * (1 + ddp + 2 * (parameter not in run.optimizer.state))
    if not run.resumed and run.ranks.device.type == "cpu":
        models = [run.model] if run.ema is None else [run.model, run.ema.module]
        total += sum(local_bytes(p) for model in models for p in model.parameters())
    return total


def local_bytes(parameter: Tensor) -> int:
    """Bytes of a parameter, or of this rank's share of it."""
    to_local = getattr(parameter, "to_local", None)
    return parameter.nbytes if to_local is None else to_local().nbytes


def peak_of_step(run: Run, pictures: int) -> int | None:
    """The most bytes that a gradient holds beyond the gradient itself, which exists before.

    So it is the second step that is measured. The first one allocates the gradient while it
    releases activations, which would not show beside it where pictures are few. Without DDP, as in
    `auto_batch`.
    """
    trial, batch = trial_run(run), random_batch(run, pictures)
    trial.wrapped_model, trial.micro_batches = run.model, 1
    zero = partial(trial.optimizer.zero_grad, set_to_none=False)
    trial.optimizer.zero_grad = zero  # type: ignore[method-assign]
    with torch.compiler.set_stance("force_eager"):  # --compile compiles for the first size it sees
        compute_gradient(trial, 0, [batch])
        trial.scaler = make_scaler(run.config, run.ranks.device)  # unscales once
        return peak_memory(lambda: compute_gradient(trial, 0, [batch]), run.ranks.device)


def measure_time(run: Run, clock: Callable[[], float] = time.perf_counter) -> Times:
    """Measures steps of rising size up to the batch's, an update, evaluation and reading.

    Measuring stops where it has taken SHARE_OF_RUN of the run; then larger steps are extrapolated.
    """
    config, ranks = run.config, run.ranks
    batch_pictures = min(config.batch_size, len(run.data.train))
    most = -(-batch_pictures // run.micro_batches)
    with unchanged(run):
        ready_model(run)
        trial = trial_run(run)
        trial.micro_batches = 1

        def gradient_of(pictures: int) -> float:
            batch = random_batch(run, pictures)
            trial.scaler = make_scaler(config, ranks.device)  # unscales once
            return timed(run, lambda: float(compute_gradient(trial, 0, [batch])[1]), clock)

        steps = steps_to_come(run)
        pictures = min(2, most)
        if config.compile:  # for the size of the run's batches alone
            pictures = most
            gradient_of(pictures)
        seconds = spent = gradient_of(pictures)

        def may_go_on() -> bool:
            return spent < SHARE_OF_RUN * seconds / pictures * batch_pictures * steps

        while pictures < most and seconds < LONG and (spent < BRIEF or may_go_on()):
            pictures = min(4 * pictures, most)
            seconds = gradient_of(pictures)
            spent += seconds
        repeats: list[float] = []
        while len(repeats) < REPEATS and may_go_on():
            repeats.append(gradient_of(pictures))
            spent += repeats[-1]
        gradient = statistics.median(repeats or [seconds]) / pictures
        update = seconds_of_update(trial, clock) * (1 + AVERAGE_PER_UPDATE * bool(config.ema))
        forward = seconds_of_evaluation(run, pictures, clock) / pictures
        saving = seconds_of_saving(run, clock)
        reading = timed_reading(run, run.train_set, clock)
        val_set = run.val_loader.dataset
        assert isinstance(val_set, PictureDataset)
        reading_val = timed_reading(run, val_set, clock)
    workers = run.train_loader.num_workers

    def together(compute: float, read: float, pictures: float) -> float:
        return combined(compute * pictures, read * pictures, workers, ranks.device.type == "cpu")

    pictures_of_step = min(config.batch_size * config.accumulate, len(run.data.train))
    val, test = (
        together(forward, reading_val, len(split or ()) / ranks.world)
        for split in (run.data.val, run.data.test)
    )
    step = together(gradient, reading, pictures_of_step) + update
    return Times(step, evaluation=val, saving=saving, test=test)


def combined(compute: float, read: float, workers: int, on_cpu: bool) -> float:
    """Seconds of computing and reading the same pictures.

    Without workers one follows the other. With them both go on at once, on the same cores if the
    device is the CPU.

    Args:
        compute: seconds on all threads of torch.
        read: seconds on one core.
    """
    if not workers:
        return compute + read
    cores = max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
    reading = read / min(workers, cores)
    if not on_cpu:
        return max(compute, reading)
    work = (compute * min(torch.get_num_threads(), cores) + read) / cores
    return max(compute, reading, work)


def steps_to_come(run: Run) -> int:
    """Steps that a run has still to take if it reaches its last epoch."""
    return run.config.epochs * run.steps - run.progress.epoch * run.steps - run.progress.step


def trial_run(run: Run) -> Run:
    """A run of the same steps with another optimizer, whose updates change no weight."""
    trial = copy.copy(run)
    trial.optimizer = make_optimizer(run.model, run.config)
    for group in trial.optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
    trial.schedule = SimpleNamespace(step_update=lambda update: None)
    trial.scaler = make_scaler(run.config, run.ranks.device)
    return trial


@contextmanager
def unchanged(run: Run) -> Iterator[None]:
    """Restores random states, modes and gradients of a run, and removes DDP, on leaving."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    training = run.model.training, run.eval_model.training
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        run.model.train(training[0])
        run.eval_model.train(training[1])
        run.model.zero_grad()
        run.wrapped_model = None  # DDP remembers the order of the gradients of its first step


def random_batch(run: Run, pictures: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, C, S, S) of random pixels, and labels (B,)."""
    settings = run.model.config
    shape = (pictures, settings.in_chans, settings.img_size, settings.img_size)
    return torch.rand(shape), torch.zeros(pictures, dtype=torch.long)


def timed(run: Run, call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds that a call takes on the slowest rank."""
    started = clock()
    call()
    return slowest(run, clock() - started)


def slowest(run: Run, seconds: float) -> float:
    """The largest value of all ranks."""
    rows = run.ranks.gather(torch.tensor([seconds], device=run.ranks.device))
    return max(row[0] for row in rows)


def fullest(ranks: Ranks, used: int, free: int) -> tuple[int, int]:
    """The largest use and the least free memory of all ranks, in bytes."""
    rows = ranks.gather(torch.tensor([float(used), float(free)], device=ranks.device))
    return int(max(row[0] for row in rows)), int(min(row[1] for row in rows))


def seconds_of_update(trial: Run, clock: Callable[[], float]) -> float:
    """Time of the optimizer's update, with gradients of zero, on the optimizer of `trial_run`."""
    for parameter in trial.model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()

    def update() -> None:
        trial.optimizer.step()
        if trial.ranks.device.type != "cpu":
            torch.accelerator.synchronize(trial.ranks.device)

    update()  # allocates the moments
    return timed(trial, update, clock)


def seconds_of_evaluation(run: Run, pictures: int, clock: Callable[[], float]) -> float:
    """Time of a forward pass of that many pictures, as in the run's evaluations."""
    batch = random_batch(run, pictures)

    def forward() -> None:
        evaluate(run.eval_model, [batch], run.ranks.device)

    forward()  # compiles kernels
    return timed(run, forward, clock)


def seconds_of_saving(run: Run, clock: Callable[[], float]) -> float:
    """Time of writing the state after an epoch, estimated from that of a checksum."""
    sample = bytes(1_000_000)
    trained = sum(p.nbytes for p in run.model.parameters() if p.requires_grad)
    size = sum(p.nbytes for p in run.model.parameters()) * (2 if run.ema else 1) + 2 * trained
    hashing = timed(run, lambda: hashlib.sha256(sample), clock) / len(sample)
    return size * hashing * (1 + WRITING_PER_HASHING)


def timed_reading(run: Run, dataset: PictureDataset, clock: Callable[[], float]) -> float:
    """Time of reading and transforming a picture, the mean of SAMPLE of them.

    Broken pictures are left out here without a word; the run reports them.
    """
    indices = np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset)), dtype=int).tolist()

    def read(indices: Sequence[int]) -> None:
        for index in indices:
            with suppress(UserError):
                dataset.transform(dataset.pictures.open(index, dataset.at_least))

    read([0])  # may import what decodes it
    return timed(run, lambda: read(indices), clock) / len(indices)
