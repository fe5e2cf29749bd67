"""Kernels for accelerators, through `torch.compile`, which keeps a cache of its own.

No one has run them on one yet; tests run the functions as they are.
"""

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

# At the default thresholds the intermediate values of a long formula are written to memory and
# read again.
OPTIONS: dict[str, Any] = {"realize_opcount_threshold": 10**5, "realize_reads_threshold": 10**5}


class Kernel(NamedTuple):
    """A function of constants and tensors, which writes its results into some of the tensors."""

    function: Callable[..., None]
    constants: tuple[object, ...]
    examples: list[Tensor]  # of typical sizes


def all_compiled(*kernels: Kernel) -> tuple[Callable[..., object], ...] | None:
    """Kernels as functions of the tensors alone, tried on their examples; None, with a warning,
    if that fails.
    """
    try:
        functions = tuple(_compiled(kernel.function, kernel.constants) for kernel in kernels)
        for function, kernel in zip(functions, kernels, strict=True):
            function(*kernel.examples)  # torch.compile does its work, and fails, at the first call
        return functions
    except Exception as error:  # compilers fail in all sorts of ways
        warn_of_failure(error)
        return None


def warn_of_failure(error: Exception) -> None:
    """Says that there will be no kernels."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(
        f"KAN kernels cannot be compiled here and run eagerly instead ({reason})", stacklevel=3
    )


def _compiled(
    function: Callable[..., None], constants: tuple[object, ...]
) -> Callable[..., object]:
    def run(*tensors: Tensor) -> None:
        function(*constants, *(tensor.detach() for tensor in tensors))

    # torch.compile counts what it compiles by code object, and gives up after a few
    own = FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True, options=OPTIONS)
