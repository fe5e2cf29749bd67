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
    """Registers a function as kansformer::`name`.

    It writes to none of its arguments and returns none of them, nor views of them. What its
    gradient is, `differentiate` says.
    """

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
        gradients: of ctx and the gradients in what the operator gives, one for each argument. The
            tensors are in ctx.saved_tensors, the other arguments in ctx.settings.
    """

    def run(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    class Differentiable(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
            ctx.save_for_backward(*arguments[:tensors])
            ctx.settings = arguments[tensors:]
            found = run(*arguments)
            return tuple(found) if isinstance(found, list) else found

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return gradients(ctx, *grads)

    def recorded(*arguments: Any) -> Tensor | list[Tensor]:
        if not torch.is_grad_enabled():
            return run(*arguments)
        found = Differentiable.apply(*arguments)
        return list(found) if isinstance(found, tuple) else found

    torch.library.impl(operator.name(), "Autograd", recorded)


def refuse(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """For `differentiate`: the gradient of an operator that has none.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("under torch.compile a KAN layer's gradient has no gradient of its own")
