"""Choice of the picture size by the time that a training may take on this machine."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.words import duration
from models.twins import count
from models.vit_model import VisionTransformer, ViTConfig

BUDGET = 1.8  # seconds per training picture over the whole run: half an hour for 1,000 pictures
FEATURES_BUDGET = 0.3  # the same where only its features are computed
EVALUATION_SHARE = 0.15  # of the time of an epoch's steps, on top
FORWARD_SHARE = 1 / 3  # of the time of a step
FEWEST = 6  # patches per side that still show what a photograph is of
GROWTH = 1.4  # of the number of patches, from one size to the next
TIMED_BATCH, TIMED_STEPS = 8, 5


def chooses_size(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether the picture size is chosen by the time that a run takes on this machine.

    On a CPU the size that a large model was pretrained at may take days. The size of a model from
    scratch is part of its recipe.
    """
    return ranks.device.type == "cpu" and config.weights is not None and config.img_size is None


def size_for_machine(config: TrainConfig, native: ViTConfig, ranks: Ranks) -> tuple[int, str]:
    """The picture size with which a run takes half an hour per 1,000 pictures, and why.

    At most that of the weights; all ranks must call it.
    """
    if config.head_only:
        size, seconds = fitting_size(
            native, config.feature_views, backward=False, budget=FEATURES_BUDGET
        )
    else:
        passes = config.epochs * (1 + EVALUATION_SHARE)
        passes += (config.feature_views + 1) * FORWARD_SHARE  # also of the validation pictures
        size, seconds = fitting_size(native, passes)
    rows = ranks.gather(torch.tensor([float(size), seconds]))
    size, seconds = int(min(row[0] for row in rows)), max(row[1] for row in rows)
    return size, (
        f"{size} px of the weights' {native.img_size}: on this machine about"
        f" {duration(1000 * seconds)} for 1,000 pictures; --img-size sets another"
    )


def candidate_sizes(patch_size: int, native: int) -> list[int]:
    """Multiples of the patch size, each about GROWTH times as costly as the one before.

    Args:
        native: the largest size, in pixels; also the only one if it has FEWEST patches or fewer.
    """
    most = native // patch_size
    sides, side = [], min(FEWEST, most)
    while side < most:
        sides.append(side)
        side = max(side + 1, round(side * math.sqrt(GROWTH)))
    return [side * patch_size for side in [*sides, most]]


def choose_size(
    seconds: float, flops: Mapping[int, int], measured_at: int, epochs: float, budget: float
) -> int:
    """The largest size whose training fits the budget, or the smallest size if none does.

    Args:
        seconds: per picture and epoch, measured at one size.
        flops: per picture, by size; the sizes to choose from. Time is taken to be proportional.
        measured_at: that size.
        epochs: how often each picture is computed.
        budget: seconds per picture in all.
    """
    cost = {size: epochs * seconds * flops[size] / flops[measured_at] for size in flops}
    return max((size for size in cost if cost[size] <= budget), default=min(flops))


def fitting_size(
    config: ViTConfig,
    epochs: float,
    *,
    backward: bool = True,
    budget: float = BUDGET,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, float]:
    """The largest size up to the model's at which a run fits the budget, measured on this machine.

    Args:
        config: of the model, with its native `img_size`.
        epochs: how often each picture is computed.
        backward: whether it trains, or only computes features.
        budget: seconds per picture in all.

    Returns:
        The size in pixels, and the seconds per picture in all that are expected at that size.
    """
    sizes = candidate_sizes(config.patch_size, config.img_size)
    flops = {size: count(replace(config, img_size=size), "flops") for size in sizes}
    seconds = seconds_per_picture(
        replace(config, img_size=sizes[0]), backward=backward, device=device, clock=clock
    )
    size = choose_size(seconds, flops, sizes[0], epochs, budget)
    return size, epochs * seconds * flops[size] / flops[sizes[0]]


def seconds_per_picture(
    config: ViTConfig,
    *,
    backward: bool = True,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Time of a forward pass, and of the backward pass if asked for, of a model of that kind.

    Weights and pixels are random, and the state of torch's generator stays as it was. It is the
    shortest of TIMED_STEPS after one that is not timed, since it compiles kernels: what else the
    machine does at the moment should not decide the size.
    """
    state = torch.get_rng_state()
    model = VisionTransformer(config).to(device or "cpu").train(backward)
    shape = (TIMED_BATCH, config.in_chans, config.img_size, config.img_size)
    images = torch.rand(shape, device=device)
    torch.set_rng_state(state)

    def step() -> float:
        started = clock()
        with torch.set_grad_enabled(backward):
            total = model(images).sum()
        if backward:
            total.backward()
            model.zero_grad()
        total.item()
        return clock() - started

    step()
    return min(step() for _ in range(TIMED_STEPS)) / TIMED_BATCH
