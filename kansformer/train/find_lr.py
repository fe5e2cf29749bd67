"""A learning rate by trial: rising rates on a copy of the model (Smith, 2017, section 3.3)."""

import copy
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.train.loss import Criterion
from kansformer.train.optimiser import clip_gradients, make_optimiser
from kansformer.train.state import seed_step
from models.vit_model import VisionTransformer

LOWEST, HIGHEST, TRIALS = 1e-6, 1.0, 100
SMOOTHING = 0.9  # of the loss, over steps
BELOW_THE_BEST = 10  # the rate of the lowest loss is the last before trouble


def find_rate(
    model: VisionTransformer,
    config: TrainConfig,
    criterion: Criterion,
    batches: Iterable[tuple[Tensor, Tensor]],
    ranks: Ranks,
) -> float:
    """A tenth of the rate at which the smoothed loss is lowest, for the highest of a schedule.

    The model stays as it is. Every rank tries on its own pictures; the mean, of the logarithm, is
    taken.
    """
    found = math.log(best_rate(copy.deepcopy(model), config, criterion, batches, ranks.device))
    rows = ranks.gather(torch.tensor([found], device=ranks.device))
    return math.exp(sum(row[0] for row in rows) / len(rows)) / BELOW_THE_BEST


def best_rate(
    model: VisionTransformer,
    config: TrainConfig,
    criterion: nn.Module | Criterion,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> float:
    """The rate at which the smoothed loss of a model, which is spent on it, is lowest."""
    optimiser = make_optimiser(model, config)
    scales = [group["lr_scale"] for group in optimiser.param_groups]
    mean, best, best_loss = 0.0, LOWEST, math.inf
    model.train()
    trials = tqdm(islice(_again_and_again(batches), TRIALS), "trying rates", TRIALS, leave=False)
    for trial, (images, labels) in enumerate(trials):
        rate = LOWEST * (HIGHEST / LOWEST) ** (trial / (TRIALS - 1))
        for group, scale in zip(optimiser.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        seed_step(config.seed, trial, 0)
        images, labels = images.to(device), labels.to(device)
        loss = criterion(model(images), labels, images).mean()
        optimiser.zero_grad()
        loss.backward()
        clip_gradients(model, config.clip_grad or math.inf)
        optimiser.step()
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss.item()
        smooth = mean / (1 - SMOOTHING ** (trial + 1))
        if not math.isfinite(smooth) or smooth > 4 * best_loss:
            break
        if smooth < best_loss:
            best, best_loss = rate, smooth
    return best


def _again_and_again(batches: Iterable[Any]) -> Iterator[Any]:
    """Without keeping them, as `itertools.cycle` would."""
    while True:
        yield from batches
