"""One step of training: the gradient of a batch, then the optimiser's update if it is finite.

Training, `--find-lr` and `--auto-batch` take the same steps.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from kansformer.data.dataset import NO_LABEL
from kansformer.train.build import freeze_layers, named_parts
from kansformer.train.distributed import in_step
from kansformer.train.loss import spline_penalty
from kansformer.train.optimiser import clip_gradients
from kansformer.train.run import Run, set_rate
from kansformer.train.state import seed_step

# What became of a step
TAKEN = "taken"
OVERFLOW = "overflow"  # float16's range was exceeded; the loss scale has been lowered
NOT_FINITE = "not finite"


def ready_model(run: Run, changed: bool = False) -> None:
    """Freezes what --freeze-layers freezes in the present epoch, and wraps the model for its ranks.

    Args:
        changed: parameters have other shapes than when the model was wrapped.
    """
    config, epoch = run.config, run.progress.epoch
    changed |= run.stepping is None
    if config.freeze_layers:
        thawed = epoch // config.unfreeze_every if config.unfreeze_every else 0
        was, run.frozen = run.frozen, freeze_layers(run.model, thawed)
        if run.frozen != was:
            run.say(f"frozen  {named_parts(run.frozen)}")
            changed = True
    if changed:
        run.stepping = in_step(run.model, run.ranks)


def take_step(
    run: Run, step: int, parts: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, int]:
    """Leaves the clipped gradient of the mean loss over all pictures of a step.

    `update_weights` must follow.

    Args:
        parts: the batches of this rank.

    Returns:
        The sum of this rank's losses, the norm of the gradient, and this rank's pictures.
    """
    config, ranks, device = run.config, run.ranks, run.ranks.device
    update = run.progress.epoch * run.steps + step
    seed_step(config.seed, update, ranks.rank)
    set_rate(run, update)
    assert run.stepping is not None
    run.stepping.train()
    run.optimiser.zero_grad()
    whole = min(len(run.sampler.labels), run.sampler.step_size)
    total = torch.zeros((), device=device)
    count = 0
    for number, (images, labels) in enumerate(parts, start=1):
        if (labels == NO_LABEL).any():  # of broken pictures
            images, labels = images[labels != NO_LABEL], labels[labels != NO_LABEL]
        count += len(labels)
        images = images.to(device, non_blocking=True)
        targets = labels.to(device, non_blocking=True)
        if run.mix is not None and len(images):
            images, targets = run.mix(images, targets)
        size = max(-(-len(images) // run.pieces), 1)
        pieces = list(zip(images.split(size), targets.split(size), strict=True))
        for piece, (some, their_targets) in enumerate(pieces, start=1):
            is_last = number == len(parts) and piece == len(pieces)
            with nullcontext() if is_last else getattr(run.stepping, "no_sync", nullcontext)():
                with autocast(config.amp, device):
                    logits = run.stepping(some)
                losses = run.criterion(logits, their_targets, some)
                # DDP takes the mean over ranks
                loss = losses.sum() * (ranks.world / whole)
                if config.spline_penalty:
                    share = len(some) * ranks.world / whole
                    loss = loss + config.spline_penalty * share * spline_penalty(run.model)
                run.scaler.scale(loss).backward()
            total += losses.detach().sum()
    run.scaler.unscale_(run.optimiser)
    norm = clip_gradients(run.model, config.clip_grad or math.inf)
    return total, norm, count


def update_weights(run: Run, loss: float, norm: float) -> str:
    """Ends a step: the optimiser's update, unless the loss or the gradient is not finite.

    Args:
        loss: the sum over all ranks.
        norm: of the gradient.

    Returns:
        TAKEN, OVERFLOW or NOT_FINITE.
    """
    scaler = run.scaler
    if math.isfinite(loss + norm):
        scaler.step(run.optimiser)
        scaler.update()
        return TAKEN
    if math.isfinite(loss) and scaler.is_enabled() and scaler.get_scale() > 1:
        scaler.update()  # the next scale is smaller
        return OVERFLOW
    # The scaler has unscaled this step's gradient and takes no other before an update. Its scale is
    # not at fault and stays.
    scaler.update(scaler.get_scale())
    return NOT_FINITE


def autocast(amp: str, device: torch.device) -> Any:
    """The context in which products take shorter floats."""
    dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
