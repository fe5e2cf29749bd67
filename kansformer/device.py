"""The one place that knows kinds of devices."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kansformer.errors import UserError
from models.kan import MODE_VARIABLE, check_mode


def choose_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """The device of that name; "auto" takes the accelerator if there is one, else the CPU.

    On an accelerator, products of float32 matrices may use its faster, shorter format (TF32).

    Args:
        local_rank: of several processes on this machine, which each take a device of their own.

    Raises:
        UserError: there is no such device here, or KAN_MODE in the environment is no way to run on
            one.
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
            f"--device {name}: not to be had here ({str(error).splitlines()[0]}); try --device auto"
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
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
