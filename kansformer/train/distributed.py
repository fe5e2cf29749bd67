"""Training in one process, or in several that torchrun starts: ranks, DDP and FSDP2.

torch.distributed as it is, not Lightning Fabric: Fabric brings its own launcher, checkpoints and
precision plugins, and the exact resume needs control of all three.
"""

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

TIMEOUT = timedelta(minutes=10)  # for a rank that does not answer; then the job ends
# texts of the plain RuntimeError with which gloo reports a lost process
LOST = "(?i)connection (closed|reset|refused)|read error|broken pipe|timed out|gloo.*timeout"
# not cpu_offload, which would leave the state on the first rank alone
FULL = checkpoint.StateDictOptions(full_state_dict=True)


@dataclass(frozen=True)
class Ranks:
    """This process's rank among the processes of a training; alone it is rank 0 of 1."""

    rank: int
    world: int  # number of processes
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes files."""
        return self.rank == 0

    @property
    def shows_bars(self) -> bool | None:
        """Whether this rank draws progress bars, as `progress_bar` takes it.

        The first one does on a terminal (None), the others never.
        """
        return None if self.is_first else False

    def gather(self, values: Tensor) -> list[list[float]]:
        """The values (n,) of every rank, copied from their devices: one row per rank."""
        if self.world == 1:
            return [values.tolist()]
        rows = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(rows, values)
        return torch.stack(rows).tolist()

    def gather_objects(self, value: Any) -> list[Any]:
        """A picklable value of every rank, in the order of the ranks."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits until all ranks have called it."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Runs the block on the first rank, then on the others, which can use its results."""
        if not self.is_first:
            self.barrier()
        yield
        if self.is_first:
            self.barrier()


@contextmanager
def process_group(device: str = "auto") -> Iterator[Ranks]:
    """Joins the processes that torchrun started, if it did, for as long as the context lasts.

    Nested contexts join the group once.

    Args:
        device: as for `choose_device`; each rank on a machine gets a different one.

    Raises:
        JobFailed: another process has ended, or did not answer within TIMEOUT.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Ranks(0, 1, choose_device(device))
        return
    rank_device = choose_device(device, int(os.environ["LOCAL_RANK"]))
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), world, rank_device)
        return
    store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        # When torchrun restarts ranks it keeps its store, which holds addresses of dead processes.
        # Only on a single machine do all ranks count the same number of restarts.
        store = dist.PrefixStore(f"attempt {restart_count()}", store)
    backend = dist.get_default_backend_for_device(rank_device)
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=world)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), rank_device)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search(LOST, str(error))):
            raise
        raise JobFailed(
            "another process of this training has ended or does not answer; its own output has the"
            " cause; --resume continues from the last saved state"
        ) from error
    finally:
        dist.destroy_process_group()


def restart_count() -> int:
    """How often torchrun has restarted the ranks after a failure (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def may_be_restarted() -> bool:
    """Whether torchrun would restart the ranks after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def discard(line: str) -> None:
    """The `log` function of ranks that print nothing."""


def data_parallel(model: VisionTransformer, ranks: Ranks) -> nn.Module:
    """The model wrapped in DDP, which averages gradients over the ranks.

    A single rank and a sharded model need no wrapper.
    """
    if ranks.world == 1 or isinstance(model, FSDPModule):
        return model
    devices = None if ranks.device.type == "cpu" else [ranks.device]
    return DistributedDataParallel(model, devices)


def shard(model: VisionTransformer) -> None:
    """Shards parameters, gradients and optimizer state over the ranks (FSDP2), block by block."""
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was applied."""
    return isinstance(model, FSDPModule)


def full_state(model: nn.Module) -> dict[str, Any]:
    """The state dict with unsharded tensors, on every rank; all ranks must call it."""
    if is_sharded(model):
        return checkpoint.get_model_state_dict(model, options=FULL)
    return model.state_dict()


def load_full_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Loads a state dict of unsharded tensors into a model, sharded or not."""
    if is_sharded(model):
        checkpoint.set_model_state_dict(model, state, options=FULL)
    else:
        model.load_state_dict(state)


def full_optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state dict with unsharded tensors; all ranks must call it."""
    # Where there is no state yet, torch would take a step to create one, which Adam's bias
    # correction would count.
    if is_sharded(model) and optimizer.state:
        return checkpoint.get_optimizer_state_dict(model, optimizer, options=FULL)
    return optimizer.state_dict()


def load_full_optimizer_state(
    model: nn.Module, optimizer: Optimizer, state: dict[str, Any]
) -> None:
    """Loads an optimizer's state dict of unsharded tensors, for a model sharded or not.

    Afterwards only those parameters of a sharded model train that have a state.
    """
    optimizer.state.clear()
    if not is_sharded(model):
        optimizer.load_state_dict(state)
    elif state["state"]:
        # torch wants the state of each parameter that trains, and of no other
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in state["state"])
        checkpoint.set_optimizer_state_dict(model, optimizer, state, options=FULL)
