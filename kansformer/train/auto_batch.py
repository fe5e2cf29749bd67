"""--auto-batch: tries whether a step fits into memory, and splits batches where it does not.

Without the flag, `plan` splits them by measured sizes alone.
"""

import copy

import torch

from kansformer.errors import JobFailed, is_short_of_memory
from kansformer.train.distributed import is_sharded
from kansformer.train.optimizer import make_scaler
from kansformer.train.run import Run
from kansformer.train.step import compute_gradient
from kansformer.train.tune import names_in_epoch, train_only


def choose_micro_batches(run: Run) -> int:
    """The fewest micro-batches with which a step fits into memory, `run.micro_batches` or more.

    They are doubled until a step fits. It is tried with steps on random pictures, in addition to
    everything that a run holds. Gradients are summed over micro-batches, so that a step gives the
    same result. All ranks get the same number.

    Raises:
        JobFailed: not even one picture fits.
    """
    config = run.config
    train_most_layers(run)
    micro_batches = run.micro_batches
    while not _fits(run, micro_batches):
        if micro_batches >= config.batch_size:
            size = run.model.config.img_size
            raise JobFailed(
                f"not even one picture of {size} x {size} fits into the memory; choose a smaller"
                " --model or --img-size"
            )
        micro_batches *= 2
    rows = run.ranks.gather(torch.tensor([float(micro_batches)], device=run.ranks.device))
    return int(max(row[0] for row in rows))


def train_most_layers(run: Run) -> None:
    """Unfreezes as many layers as will ever train; `ready_model` freezes them for each epoch."""
    train_only(run.model, names_in_epoch(run.model, run.config, run.config.epochs - 1))


def _fits(run: Run, micro_batches: int) -> bool:
    """Whether a step with that many micro-batches fits; weights and optimizer are not changed.

    Each rank tries by itself, without DDP, since a rank out of memory would leave the others
    waiting. The layers of a sharded model need all ranks, which are assumed to have equal memory.
    """
    config, model, device = run.config, run.model, run.ranks.device
    shape = (config.batch_size, model.config.in_chans, model.config.img_size, model.config.img_size)
    trial = copy.copy(run)
    trial.micro_batches, trial.wrapped_model = micro_batches, model
    trial.scaler = make_scaler(config, device)
    ddp = run.ranks.world > 1 and not is_sharded(model)
    try:
        reserved = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                # Adam's two moments if there are none yet, and DDP's copy of the gradient
                copies = 2 * (parameter not in run.optimizer.state) + ddp
                reserved += [torch.zeros_like(parameter) for _ in range(copies)]
        labels = torch.zeros(config.batch_size, dtype=torch.long)
        compute_gradient(trial, 0, [(torch.rand(shape), labels)])
        del reserved
    except (MemoryError, RuntimeError) as error:  # the CPU's allocator raises no special class
        if not (isinstance(error, torch.OutOfMemoryError) or is_short_of_memory(error)):
            raise
        return False
    finally:
        model.zero_grad()
        if device.type != "cpu":
            torch.accelerator.empty_cache()
    return True
