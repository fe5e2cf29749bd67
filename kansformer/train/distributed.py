"""One process or many (torchrun): who is who, what they tell each other, how a model is shared."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from kansformer.device import choose_device
from kansformer.errors import JobFailed
from models.vit_model import VisionTransformer

TIMEOUT = timedelta(minutes=10)  # after which a rank that is waited for in vain ends the job
# what gloo says when a process is gone, in a RuntimeError without a class of its own
LOST = "(?i)connection (closed|reset|refused)|read error|broken pipe|timed out|gloo.*timeout"
WHOLE = checkpoint.StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together; alone it is rank 0 of 1."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    @property
    def shows_bars(self) -> bool | None:
        """Whether this one draws progress bars, as for `progress_bar`: the first on a terminal."""
        return None if self.is_first else False

    def gather(self, values: Tensor) -> list[list[float]]:
        """The numbers (n,) of every rank, read from their devices: one row per rank."""
        if self.world == 1:
            return [values.tolist()]
        rows = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(rows, values)
        return torch.stack(rows).tolist()

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Work that the first rank does alone, so that the others find what it leaves."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


@contextmanager
def joined_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Joins the processes that torchrun started, if it did, for as long as the context lasts.

    Within such a context another one changes nothing.

    Args:
        device: as for `choose_device`; every rank of a machine has one of its own.

    Raises:
        JobFailed: another process has ended without a word to this one.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Ranks(0, 1, choose_device(device))
        return
    here = choose_device(device, int(os.environ["LOCAL_RANK"]))
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), world, here)
        return
    store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        # torchrun keeps its store when it starts ranks again, with addresses of dead ones in it.
        # Only on one machine do all ranks count restarts alike.
        store = dist.PrefixStore(f"attempt {restarts()}", store)
    backend = dist.get_default_backend_for_device(here)
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=world)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), here)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search(LOST, str(error))):
            raise
        raise JobFailed(
            "another process of this training has ended, or was waited for in vain; its own message"
            " tells why; --resume goes on from the last state"
        ) from error
    finally:
        dist.destroy_process_group()


def restarts() -> int:
    """How often torchrun has started the ranks again after a failure (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def may_be_restarted() -> bool:
    """Whether torchrun would start the ranks again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def ignore(line: str) -> None:
    """What ranks say that do not speak."""


def in_step(model: VisionTransformer, ranks: Ranks) -> nn.Module:
    """The model to call in training: gradients are the ranks' mean. Others stay on their own."""
    if ranks.world == 1 or isinstance(model, FSDPModule):
        return model
    devices = None if ranks.device.type == "cpu" else [ranks.device]
    return DistributedDataParallel(model, devices)


def shard(model: VisionTransformer) -> None:
    """Spreads parameters, gradients and optimiser state over the ranks (FSDP2), block by block."""
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was applied."""
    return isinstance(model, FSDPModule)


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The state dict with whole tensors, on every rank that asks; all must."""
    if is_sharded(model):
        return checkpoint.get_model_state_dict(model, options=WHOLE)
    return model.state_dict()


def whole_optimiser_state(model: nn.Module, optimiser: Optimizer) -> dict[str, Any]:
    """The optimiser's state dict with whole tensors; all ranks must ask."""
    # of one without a state torch would ask by making a step, which counts in Adam's corrections
    if is_sharded(model) and optimiser.state:
        return checkpoint.get_optimizer_state_dict(model, optimiser, options=WHOLE)
    return optimiser.state_dict()


def load_whole_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Puts a state dict with whole tensors into a model, sharded or not."""
    if is_sharded(model):
        checkpoint.set_model_state_dict(model, state, options=WHOLE)
    else:
        model.load_state_dict(state)


def load_whole_optimiser_state(
    model: nn.Module, optimiser: Optimizer, state: dict[str, Any]
) -> None:
    """Puts an optimiser's state with whole tensors back, sharded or not."""
    optimiser.state.clear()
    if not is_sharded(model):
        optimiser.load_state_dict(state)
    elif state["state"]:
        checkpoint.set_optimizer_state_dict(model, optimiser, state, options=WHOLE)
