"""One training step: the gradient over its batches, then the weight update if it is finite.

Training, `--find-lr` and `--auto-batch` take the same steps.
"""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kansformer.data.dataset import NO_LABEL
from kansformer.train.distributed import data_parallel
from kansformer.train.loss import spline_penalty
from kansformer.train.optimizer import clip_gradients
from kansformer.train.run import Run, set_learning_rate
from kansformer.train.tune import (
    describe_trained,
    names_in_epoch,
    train_only,
    unfrozen_blocks,
)

# outcomes of a step
TAKEN = "taken"
OVERFLOW = "overflow"  # beyond float16's range; skipped, and the loss scale is lowered
NOT_FINITE = "not finite"  # skipped


def ready_model(run: Run, changed: bool = False) -> None:
    """Freezes what --tune leaves frozen in the current epoch, and wraps the model in DDP.

    Args:
        changed: whether parameters have changed shape since the model was wrapped.
    """
    config, epoch = run.config, run.progress.epoch
    changed |= run.wrapped_model is None
    before, run.trained = run.trained, names_in_epoch(run.model, config, epoch)
    train_only(run.model, run.trained)
    if run.trained != before:
        if config.tuned != {"all"} and not config.head_only:
            unfrozen = unfrozen_blocks(config, epoch)
            run.log(f"trains  {describe_trained(run.model, config.tuned, unfrozen)}")
        changed = True
    if changed:
        run.wrapped_model = data_parallel(run.model, run.ranks)


def compute_gradient(
    run: Run, step: int, batches: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, int]:
    """Computes the clipped gradient of the mean loss over all pictures of a step.

    The gradient is summed over batches, over their micro-batches and over ranks. `update_weights`
    must follow.

    Args:
        step: its number in the current epoch, from 0.
        batches: pictures (B, C, S, S) and labels (B,) of this rank.

    Returns:
        The sum of this rank's losses, the norm of the gradient before clipping (both scalars on
        the device), and the number of this rank's pictures.
    """
    config, ranks, device = run.config, run.ranks, run.ranks.device
    update = run.progress.epoch * run.steps + step
    seed_step(config.seed, update, ranks.rank)
    set_learning_rate(run, update)
    assert run.wrapped_model is not None
    run.wrapped_model.train()
    run.optimizer.zero_grad()
    step_size = min(len(run.sampler.labels), run.sampler.step_size)
    total = torch.zeros((), device=device)
    count = 0
    for number, (images, labels) in enumerate(batches, start=1):
        if (labels == NO_LABEL).any():  # broken pictures
            images, labels = images[labels != NO_LABEL], labels[labels != NO_LABEL]
        count += len(labels)
        images = images.to(device, non_blocking=True)
        targets = labels.to(device, non_blocking=True)
        if run.mix is not None and len(images):
            images, targets = run.mix(images, targets)
        size = max(-(-len(images) // run.micro_batches), 1)
        micro_batches = list(zip(images.split(size), targets.split(size), strict=True))
        for micro_number, (x, y) in enumerate(micro_batches, start=1):
            is_last = number == len(batches) and micro_number == len(micro_batches)
            # DDP averages gradients over the ranks in the last backward pass of a step only
            no_sync = nullcontext if is_last else getattr(run.wrapped_model, "no_sync", nullcontext)
            with no_sync():
                with autocast(config.amp, device):
                    logits = run.wrapped_model(x)
                losses = run.criterion(logits, y, x)
                # times the number of ranks, since DDP takes the mean over them
                loss = losses.sum() * (ranks.world / step_size)
                if config.spline_penalty:
                    share = len(x) * ranks.world / step_size
                    loss = loss + config.spline_penalty * share * spline_penalty(run.model)
                run.scaler.scale(loss).backward()
            total += losses.detach().sum()
    run.scaler.unscale_(run.optimizer)
    norm = clip_gradients(run.model, config.clip_grad or math.inf)
    return total, norm, count


def update_weights(run: Run, loss: float, norm: float) -> str:
    """Ends a step with the optimizer's update, or skips it if loss or gradient are not finite.

    Args:
        loss: the sum over all ranks.
        norm: of the gradient.

    Returns:
        TAKEN, OVERFLOW or NOT_FINITE.
    """
    scaler = run.scaler
    if math.isfinite(loss + norm):
        scaler.step(run.optimizer)
        scaler.update()
        return TAKEN
    if math.isfinite(loss) and scaler.is_enabled() and scaler.get_scale() > 1:
        scaler.update()  # lowers the scale
        return OVERFLOW
    # The scaler has unscaled this gradient and accepts the next one only after an update. The scale
    # is not the cause and stays as it is.
    scaler.update(scaler.get_scale())
    return NOT_FINITE


def seed_step(seed: int, step: int, rank: int) -> None:
    """Makes dropout and timm's mixing, which draws from NumPy, functions of the step's number.

    So a resumed run draws the same numbers.
    """
    torch.manual_seed(hash((seed, step, rank)))
    np.random.seed(hash((seed, step, rank)) % 2**32)


def autocast(amp: str, device: torch.device) -> Any:
    """The context in which matrix products run in lower precision; `amp` as in --amp."""
    dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
