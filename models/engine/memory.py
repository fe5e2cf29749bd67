"""What is kept between calls of a layer: buffers, and tables made from its knots."""

import math
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .torch_private import are_functorch_transforms_active, dispatch_stack_length

Table = TypeVar("Table")


class _Workspace(threading.local):
    """Buffers that are reused, one set per thread, and grow to the largest size asked for.

    A large tensor that comes fresh from the system costs as much in page faults as the features
    cost to compute. On other devices than the CPU, torch keeps such memory itself.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the device of `like`, which the next one of that name replaces."""
        if like.device.type != "cpu":
            return like.new_empty(shape, dtype=dtype)
        size = math.prod(shape)
        buffer = self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            if not self.buffers:
                _keep_freed_memory()
            with torch.inference_mode(False):  # its tensors could not be written to outside it
                buffer = torch.empty(size, dtype=dtype, device="cpu")
            self.buffers[name, dtype] = buffer
        return buffer[:size].view(shape)


def _keep_freed_memory() -> None:
    """Has glibc keep the memory of a layer's products for the next block.

    It returns freed memory to the system beyond twice the largest block freed so far, up to an
    upper limit of 32 MB.
    """
    torch.empty(2**25 - 2**12, dtype=torch.uint8, device="cpu")


workspace = _Workspace()


def cached_table(make: Callable[[Tensor, int], Table], knots: Tensor, order: int) -> Table:
    """make(knots, order), computed once for knots on a CPU with these values.

    The result is shared and must not be written to.
    """
    traced = (
        torch.compiler.is_compiling()
        or are_functorch_transforms_active()
        or dispatch_stack_length() > 0
    )
    if traced or type(knots) is not Tensor or knots.device.type != "cpu":
        return make(knots, order)
    values = knots.detach().contiguous().numpy()
    return cast(Table, _by_value(make, order, knots.dtype, knots.shape, values.tobytes()))


@lru_cache(maxsize=256)
def _by_value(
    make: Callable[[Tensor, int], Any],
    order: int,
    dtype: torch.dtype,
    shape: torch.Size,
    values: bytes,
) -> Any:
    with torch.inference_mode(False), torch.no_grad():  # to be used in training too
        return make(torch.frombuffer(bytearray(values), dtype=dtype).view(shape), order)
