"""Batches in pieces, where memory is short."""

from dataclasses import replace

import torch

from kansformer.errors import JobFailed
from kansformer.train.build import freeze_layers
from kansformer.train.distributed import is_sharded
from kansformer.train.run import Run, make_scaler
from kansformer.train.step import take_step


def pieces_that_fit(run: Run) -> int:
    """The number of pieces, a power of two, in which a step's batch fits into the memory.

    Tried with steps on pictures of noise, beside everything that a run holds. All ranks take the
    same number, and gradients are summed over the pieces, so that a step stays what it was.

    Raises:
        JobFailed: not even one picture fits.
    """
    config = run.config
    if config.freeze_layers:  # with as many layers as will ever train; `ready_model` freezes again
        every = config.unfreeze_every
        freeze_layers(run.model, (config.epochs - 1) // every if every else 0)
    pieces = 1
    while not _fits(run, pieces):
        if pieces >= config.batch_size:
            size = run.model.config.img_size
            raise JobFailed(
                f"not even one picture of {size} x {size} fits into the memory; take a smaller"
                " --model or --img-size"
            )
        pieces *= 2
    rows = run.ranks.gather(torch.tensor([float(pieces)], device=run.ranks.device))
    return int(max(row[0] for row in rows))


def _fits(run: Run, pieces: int) -> bool:
    """Whether a step in so many pieces fits; weights and optimiser stay as they are.

    Ranks try on their own, without DDP, since one that is short of memory would leave the others
    waiting. The layers of a sharded model need all ranks, which are taken to have equal memory.
    """
    config, model, device = run.config, run.model, run.ranks.device
    shape = (config.batch_size, model.config.in_chans, model.config.img_size, model.config.img_size)
    trial = replace(run, pieces=pieces, stepping=model, scaler=make_scaler(config, device))
    ddp = run.ranks.world > 1 and not is_sharded(model)
    try:
        room = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                # Adam's two moments if it has none yet, and DDP's copy of the gradient
                copies = 2 * (parameter not in run.optimiser.state) + ddp
                room += [torch.zeros_like(parameter) for _ in range(copies)]
        labels = torch.zeros(config.batch_size, dtype=torch.long)
        take_step(trial, 0, [(torch.rand(shape), labels)])
        del room
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:  # the CPU's allocator has no class of its own
        if "allocate memory" not in str(error):
            raise
        return False
    finally:
        model.zero_grad()
        if device.type != "cpu":
            torch.accelerator.empty_cache()
    return True
