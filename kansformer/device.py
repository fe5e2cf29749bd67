"""Choice of the device, its memory, and the number of usable CPU cores."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from kansformer import memory
from kansformer.errors import UserError
from models.kan import MODE_VARIABLE, check_mode


def choose_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """The device with this name; "auto" is the accelerator if there is one, else the CPU.

    On an accelerator, this enables reduced precision (TF32) for float32 matrix products.

    Args:
        local_rank: rank of this process on its machine, where each process uses a different device.

    Raises:
        UserError: the device is not available, or the environment variable KAN_MODE is invalid.
    """
    try:
        check_mode(os.environ.get(MODE_VARIABLE) or "auto")
    except ValueError as error:
        raise UserError(f"{MODE_VARIABLE} in the environment: {error}; or unset it") from None
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = accelerator or torch.device("cpu") if name == "auto" else None
    try:
        device = device or torch.device(name)
        if local_rank is not None and device.type != "cpu" and device.index is None:
            device = torch.device(device.type, local_rank)
        torch.empty(1, device=device)
        if device.type not in ("cpu", accelerator and accelerator.type):  # such as meta
            raise RuntimeError("no device to compute on")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: not available here ({str(error).splitlines()[0]}); try --device auto"
        ) from None
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)
    return device


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Within, float32 matrix products may run in TF32 on an accelerator that has it."""
    before = torch.get_float32_matmul_precision()
    if device.type != "cpu":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still get on a device; `memory.UNKNOWN` if it does not say."""
    if device.type == "cpu":
        return memory.free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return memory.UNKNOWN
    kept = module.memory_reserved(device) - module.memory_allocated(device)  # for later tensors
    return module.mem_get_info(device)[0] + kept


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes that a call holds on a device, beyond those held before; None if unknown."""
    if device.type == "cpu":
        return memory.peak_of_allocations(call)
    module = torch.get_device_module(device)
    if not hasattr(module, "reset_peak_memory_stats"):
        return None
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    call()
    torch.accelerator.synchronize(device)
    return module.max_memory_allocated(device) - before
