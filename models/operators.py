"""Operators of torch that are written in Python: opaque to torch.compile, and light to call.

`torch.library.custom_op` would do the same, but its checks of every call take longer than the
product of a small layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def operator(name: str) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Registers a function, which writes to none of its arguments, as kansformer::`name`."""

    def register(function: Callable[..., Any]) -> torch._ops.OpOverload:
        full = f"kansformer::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(full, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(full, "default", function)
        return getattr(torch.ops.kansformer, name).default

    return register


def differentiate(
    operator: torch._ops.OpOverload,
    tensors: int,
    gradients: Callable[..., tuple[Tensor | None, ...]],
) -> None:
    """Gives an operator its gradient.

    Args:
        tensors: how many arguments are tensors, which are kept; they come first.
        gradients: of ctx and the gradient in the output, one for each argument. The tensors are
            in ctx.saved_tensors, the other arguments in ctx.settings.
    """

    class Differentiable(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            ctx.save_for_backward(*arguments[:tensors])
            ctx.settings = arguments[tensors:]
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            return gradients(ctx, grad)

    torch.library.impl(operator.name(), "Autograd", lambda *a: Differentiable.apply(*a))
