"""--find-lr: chooses a learning rate by steps at rising rates (Smith, 2017, section 3.3)."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

import torch
from torch import Tensor
from torch.optim import Optimizer

from kansformer.progress import progress_bar
from kansformer.train.distributed import full_state, load_full_state
from kansformer.train.optimizer import make_scaler
from kansformer.train.run import Progress, Run, reset_optimizer
from kansformer.train.state import to_cpu
from kansformer.train.step import (
    NOT_FINITE,
    OVERFLOW,
    compute_gradient,
    ready_model,
    update_weights,
)

LOWEST, HIGHEST, TRIALS = 1e-6, 1.0, 100
SMOOTHING = 0.9  # of the loss, over steps
SAFETY_FACTOR = 10  # the rate of the lowest loss is the last one before divergence
DIVERGED = 4  # the search ends where the smoothed loss exceeds its minimum by this factor


class RisingRate:
    """A schedule of TRIALS steps, from LOWEST to HIGHEST in geometric progression."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def step_update(self, update: float) -> None:
        """Sets the rate of a step, times each group's `lr_scale`."""
        for group in self.optimizer.param_groups:
            group["lr"] = trial_rate(update) * group["lr_scale"]


def trial_rate(trial: float) -> float:
    """The learning rate of a trial step, counted from 0."""
    return LOWEST * (HIGHEST / LOWEST) ** (trial / (TRIALS - 1))


def find_learning_rate(run: Run) -> float:
    """A tenth of the rate with the lowest smoothed loss, as the highest rate of a schedule.

    Apart from the rates, the steps are those of the run's first epochs, with the same frozen
    layers, micro-batches, mixing and precision, and with the gradients of all ranks. Afterwards
    the weights are restored, and the optimizer is reset.
    """
    weights = to_cpu(full_state(run.model))
    ready_model(run)
    reset_optimizer(run)
    best = best_rate(run)
    load_full_state(run.model, weights)
    reset_optimizer(run)
    return best / SAFETY_FACTOR


def best_rate(run: Run) -> float:
    """The rate with the lowest smoothed loss, the same on all ranks.

    Changes the weights and the optimizer's state.
    """
    trial = copy.copy(run)
    trial.config = replace(run.config, time_budget=None)
    trial.schedule = RisingRate(run.optimizer)
    trial.scaler = make_scaler(run.config, run.ranks.device)
    trial.progress = Progress()
    mean, taken, best, best_loss = 0.0, 0, LOWEST, math.inf
    steps = islice(_step_batches(run), TRIALS)
    bar = progress_bar(steps, "trying rates", TRIALS, shown=run.ranks.shows_bars)
    for step, batches in enumerate(bar):
        losses, norm, pictures = compute_gradient(trial, step, batches)
        rows = run.ranks.gather(torch.stack([losses, norm, losses.new_tensor(pictures)]))
        total = sum(row[0] for row in rows)
        outcome = update_weights(trial, total, rows[0][1])
        if outcome == OVERFLOW:
            continue
        taken += 1
        loss = total / max(sum(row[2] for row in rows), 1)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth = mean / (1 - SMOOTHING**taken)  # bias-corrected, as in Adam
        if outcome == NOT_FINITE or smooth > DIVERGED * best_loss:
            break
        if smooth < best_loss:
            best, best_loss = trial_rate(step), smooth
    return best


def _step_batches(run: Run) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """This rank's batches of one step after another, epoch after epoch."""
    for epoch in count():
        run.sampler.epoch, run.sampler.first_step = epoch, 0
        batches = iter(run.train_loader)
        for _ in range(run.sampler.steps):
            yield list(islice(batches, run.config.accumulate))
