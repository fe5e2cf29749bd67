"""The product at the heart of a group-KAN layer: one spline per group of channels, then weights.

Like `kan_ops`, an operator that keeps only its input and computes the functions again in the
backward pass, block by block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models import group_native
from models.group_features import GroupKernel, group_functions, make_group_kernel
from models.kan_ops import (
    block_rows,
    gradient_before,
    no_autocast,
    product_dtype,
    times_transposed,
    way_to_run,
)
from models.operators import differentiate, operator, refuse
from models.splines import basis_dtype


def group_kan_linear(
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    activation: str | None,
    weight: Tensor,
    bias: Tensor | None,
    mode: str = "auto",
) -> Tensor:
    """weight · φ(x) + bias, with φ(x_c) = b(x_c) + the spline of channel c's group at x_c.

    φ is computed in float32 or better, also under autocast; at most the matrix product runs in
    autocast's type.

    Args:
        x: (..., in).
        knots, pieces, activation: as in `group_features.group_functions`.
        weight: (out, in).
        bias: (out,), or None.
        mode: as in `kan_ops.kan_linear`.

    Returns:
        (..., out).

    Raises:
        ValueError: KAN_MODE in the environment is no mode.
    """
    mode = way_to_run(x, (pieces, weight), mode)
    dtype = product_dtype(x, weight)
    if mode == "plain":
        y = _plain(x, knots, pieces, activation, weight, bias, dtype)
    else:
        flat = x.reshape(-1, x.shape[-1])
        y = _forward(flat, knots, pieces, weight, bias, activation, dtype, mode == "compiled")
    return y.reshape(*x.shape[:-1], len(weight))


def _plain(
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    activation: str | None,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    exact = basis_dtype(x, knots)
    values = group_functions(x.to(exact), knots.to(exact), pieces.to(exact), activation)
    y = values.to(dtype) @ weight.to(dtype).T
    return y if bias is None else y + bias.to(dtype)


@operator("group_kan_linear")
def _forward(
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
) -> Tensor:
    """The layer, (N, in) -> (N, out); without a compiler in blocks."""
    exact = torch.promote_types(basis_dtype(x, knots), weight.dtype)
    layer = knots.to(exact), pieces.to(exact)
    library = group_native.library_for(*layer, activation, compiled)
    if library is not None:
        return group_native.forward(library, x, *layer, weight, bias).to(dtype)
    with no_autocast(x):
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        y = x.new_empty(len(x), len(weight), dtype=dtype)
        for rows, block, kernel in _blocks(x, knots, pieces, activation, dtype, compiled):
            times_transposed(kernel.values(block), weight, bias, out=y[rows])
        return y


@torch.library.register_fake(_forward)
def _(x: Tensor, knots: Tensor, pieces: Tensor, weight: Tensor, *settings: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=settings[2])


@operator("group_kan_linear_backward")
def _backward(
    grad: Tensor,
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    weight: Tensor,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
) -> list[Tensor]:
    """Gradients in x, pieces and weight."""
    exact = torch.promote_types(basis_dtype(x, knots), weight.dtype)
    layer = knots.to(exact), pieces.to(exact)
    library = group_native.library_for(*layer, activation, compiled)
    if library is not None:
        found = group_native.backward(library, grad, x, *layer, weight)
        return [own.to(like.dtype) for own, like in zip(found, (x, pieces, weight), strict=True)]
    with no_autocast(x):
        grad = grad.to(dtype).contiguous()
        exact = basis_dtype(x, knots)
        grad_x = torch.empty_like(x, dtype=exact, memory_format=torch.contiguous_format)
        grad_pieces = torch.zeros_like(pieces, dtype=exact)
        grad_weight = None
        weight_used = weight.to(dtype)
        for rows, block, kernel in _blocks(x, knots, pieces, activation, dtype, compiled):
            grad_values = gradient_before(grad[rows], weight_used)
            values, moments = kernel.gradients(block, grad_values, grad_x[rows])
            grad_pieces += moments
            product = times_transposed(grad[rows].T, values.T)
            product = product.to(basis_dtype(product, product))
            grad_weight = product if grad_weight is None else grad_weight.add_(product)
        if grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        return [grad_x.to(x.dtype), grad_pieces.to(pieces.dtype), grad_weight.to(weight.dtype)]


@torch.library.register_fake(_backward)
def _(
    grad: Tensor, x: Tensor, knots: Tensor, pieces: Tensor, weight: Tensor, *settings: Any
) -> Any:
    return [tensor.new_empty(tensor.shape) for tensor in (x, pieces, weight)]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, knots, pieces, weight, bias = ctx.saved_tensors
    activation, dtype, _ = ctx.settings
    grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # the gradient is to be differentiated again
        y = _plain(x, knots, pieces, activation, weight, bias, dtype)
        wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
        inputs = [ctx.saved_tensors[i] for i in wanted]
        found = torch.autograd.grad(y, inputs, grad, create_graph=True, materialize_grads=True)
        for i, gradient in zip(wanted, found, strict=True):
            grads[i] = gradient
        return tuple(grads)
    grads[0], grads[2], grads[3] = _backward(grad, x, knots, pieces, weight, *ctx.settings)
    if bias is not None:
        grads[4] = grad.sum(dim=0).to(bias.dtype)
    return tuple(grads)


differentiate(_forward, 5, _gradients)
differentiate(_backward, 5, refuse)


@register_flop_formula(torch.ops.kansformer.group_kan_linear)
def _flops(x: Any, knots: Any, pieces: Any, weight: Any, *args: Any, **options: Any) -> int:
    """Of the matrix product, as torch counts those of other layers; all arguments are shapes."""
    return 2 * x[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.kansformer.group_kan_linear_backward)
def _backward_flops(
    grad: Any, x: Any, knots: Any, pieces: Any, weight: Any, *args: Any, **options: Any
) -> int:
    """The same for each of the gradients in x and in the weights."""
    return 2 * _flops(x, knots, pieces, weight)


def _blocks(
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
) -> Iterator[tuple[slice, Tensor, GroupKernel]]:
    """Blocks of x's rows with their places, and the kernel to compute φ of them."""
    exact = basis_dtype(x, knots)
    kernel = make_group_kernel(knots.to(exact), pieces.to(exact), activation, dtype, compiled)
    for rows in block_rows(len(x), x.shape[1], x.device):
        yield rows, x[rows].to(exact).contiguous(), kernel
