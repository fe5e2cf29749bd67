"""A learning rate by trial: steps of the run at rising rates (Smith, 2017, section 3.3)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

import torch
from torch import Tensor
from torch.optim import Optimizer

from kansformer.progress import progress_bar
from kansformer.train.distributed import load_whole_state, whole_state
from kansformer.train.run import Run, make_scaler, renew_optimiser
from kansformer.train.state import Progress, on_cpu
from kansformer.train.step import NOT_FINITE, OVERFLOW, ready_model, take_step, update_weights

LOWEST, HIGHEST, TRIALS = 1e-6, 1.0, 100
SMOOTHING = 0.9  # of the loss, over steps
BELOW_THE_BEST = 10  # the rate of the lowest loss is the last before trouble


class RisingRate:
    """A schedule of TRIALS steps, from LOWEST to HIGHEST in equal ratios."""

    def __init__(self, optimiser: Optimizer) -> None:
        self.optimiser = optimiser

    def step_update(self, update: float) -> None:
        """The rate of a step, times each group's scale."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate_of(update) * group["lr_scale"]


def rate_of(trial: float) -> float:
    """The rate of a trial, counted from 0."""
    return LOWEST * (HIGHEST / LOWEST) ** (trial / (TRIALS - 1))


def find_rate(run: Run) -> float:
    """A tenth of the rate at which the smoothed loss is lowest, for the highest of a schedule.

    The steps are those of the run's first epochs but for their rates: with the same frozen layers,
    pieces, mixing and precision, and the gradients of all ranks. Afterwards the weights are put
    back, and the optimiser is a new one.
    """
    weights = on_cpu(whole_state(run.model))
    ready_model(run)
    renew_optimiser(run)
    best = best_rate(run)
    load_whole_state(run.model, weights)
    renew_optimiser(run)
    return best / BELOW_THE_BEST


def best_rate(run: Run) -> float:
    """The rate at which the smoothed loss is lowest; the run's model and optimiser are spent on it.

    Every rank finds the same.
    """
    trial = replace(
        run,
        config=replace(run.config, time_budget=None),
        schedule=RisingRate(run.optimiser),
        scaler=make_scaler(run.config, run.ranks.device),
        progress=Progress(),
    )
    mean, taken, best, best_loss = 0.0, 0, LOWEST, math.inf
    steps = islice(_batches_of_steps(run), TRIALS)
    bar = progress_bar(steps, "trying rates", TRIALS, shown=run.ranks.shows_bars)
    for number, parts in enumerate(bar):
        losses, norm, pictures = take_step(trial, number, parts)
        rows = run.ranks.gather(torch.stack([losses, norm, losses.new_tensor(pictures)]))
        total = sum(row[0] for row in rows)
        outcome = update_weights(trial, total, rows[0][1])
        if outcome == OVERFLOW:
            continue
        taken += 1
        loss = total / max(sum(row[2] for row in rows), 1)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth = mean / (1 - SMOOTHING**taken)
        if outcome == NOT_FINITE or smooth > 4 * best_loss:
            break
        if smooth < best_loss:
            best, best_loss = rate_of(number), smooth
    return best


def _batches_of_steps(run: Run) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The batches of each step of this rank, epoch after epoch."""
    for epoch in count():
        run.sampler.epoch, run.sampler.first_step = epoch, 0
        batches = iter(run.train_loader)
        for _ in range(run.sampler.steps):
            yield list(islice(batches, run.config.accumulate))
