"""The product at the heart of a KAN layer: features of every input value times weights.

Written as an autograd function that keeps only its input: the features, n + 1 times as large, are
computed again in the backward pass, block by block, so that they need not leave the cache.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.kan_features import Kernel, features, knot_table, make_kernel, workspace
from models.splines import basis_dtype

MODES = ("auto", "compiled", "eager", "plain")
MODE_VARIABLE = "KAN_MODE"  # of the environment; for layers whose mode is "auto"
COMPILE_ELEMENTS = 2**16  # inputs smaller than this do not repay the compiler

# On a CPU a block's features stay in the cache; measured best on 2 cores with 1 MB of L2 each.
BLOCK_ELEMENTS, BLOCK_ROWS = 2**16, (128, 512)
DEVICE_BLOCK_FEATURES = 2**27  # elsewhere a block is there to bound the memory


class Weights(NamedTuple):
    """The parameters of a layer; base is None where the base term is computed elsewhere."""

    base: Tensor | None  # (out, in)
    spline: Tensor  # (out, in, n)
    scaler: Tensor | None  # (out, in)


def kan_linear(
    x: Tensor,
    knots: Tensor,
    order: int,
    activation: str | None,
    weights: Weights,
    mode: str = "auto",
) -> Tensor:
    """Σ_i base[o, i] · b(x_i) + Σ_i Σ_j scaler[o, i] · spline[o, i, j] · B_j(x_i).

    Features are computed in float32 or better, also under autocast; only the matrix product runs
    in autocast's type.

    Args:
        x: (..., in).
        knots: (in, M), for M - order - 1 B-splines.
        order: their degree.
        activation: b, a name in `kan_features.ACTIVATIONS`; None if there is no base weight.
        weights: see there.
        mode: "compiled", "eager" or "plain"; "auto" takes what KAN_MODE says in the environment,
            and else compiles where gradients are recorded and x is large enough to repay it. What
            torch.compile, torch.export or torch.func traces is always "plain".

    Returns:
        (..., out).

    Raises:
        ValueError: a mode that is none of these.
    """
    mode = _way(x, weights, mode)
    if mode == "plain":
        return _plain(x, knots, order, activation, weights, _product_dtype(x, weights))
    flat = x.reshape(-1, x.shape[-1])
    y = _KANLinear.apply(flat, knots, order, activation, mode == "compiled", *weights)
    return y.reshape(*x.shape[:-1], len(weights.spline))


def _way(x: Tensor, weights: Weights, mode: str) -> str:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return "plain"
    if mode == "auto":
        mode = os.environ.get(MODE_VARIABLE, "auto")
    if mode not in MODES:
        raise ValueError(f"the mode of a KAN layer must be one of {', '.join(MODES)}, not {mode!r}")
    if mode != "auto":
        return mode
    recorded = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *weights)
    )
    return "compiled" if recorded and x.numel() >= COMPILE_ELEMENTS else "eager"


def _product_dtype(x: Tensor, weights: Weights) -> torch.dtype:
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weights.spline.dtype


def _plain(
    x: Tensor,
    knots: Tensor,
    order: int,
    activation: str | None,
    weights: Weights,
    dtype: torch.dtype,
) -> Tensor:
    """The layer in operations that autograd knows."""
    exact = basis_dtype(x, knots)
    values = features(x.to(exact), knot_table(knots.to(exact), order), order, activation)
    packed = weights.spline.transpose(1, 2)  # (out, n, in)
    if weights.scaler is not None:
        packed = packed * weights.scaler[:, None]
    if weights.base is not None:
        packed = torch.cat([weights.base[:, None], packed], dim=1)
    return values.flatten(-2).to(dtype) @ packed.flatten(1).to(dtype).T


class _KANLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        knots: Tensor,
        order: int,
        activation: str | None,
        compiled: bool,
        *tensors: Tensor,
    ) -> Tensor:
        weights = Weights(*tensors)
        ctx.save_for_backward(x, knots, *weights)
        ctx.settings = order, activation
        ctx.compiled = compiled
        ctx.dtype = _product_dtype(x, weights)
        with torch.autocast(x.device.type, enabled=False):
            packed = _packed(weights, ctx.dtype).T  # (features · in, out)
            y = packed.new_empty(len(x), packed.shape[1])
            for rows, block, kernel in _blocks(x, knots, *ctx.settings, ctx.dtype, compiled):
                torch.mm(kernel.features(block).flatten(1), packed, out=y[rows])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, knots, *tensors = ctx.saved_tensors
        weights = Weights(*tensors)
        needed = ctx.needs_input_grad[:1] + ctx.needs_input_grad[5:]
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            y = _plain(x, knots, *ctx.settings, weights, ctx.dtype)
            inputs = [tensor for tensor, need in zip((x, *weights), needed, strict=True) if need]
            found = iter(
                torch.autograd.grad(y, inputs, grad, create_graph=True, materialize_grads=True)
            )
            grads = [next(found) if need else None for need in needed]
            return grads[0], None, None, None, None, *grads[1:]

        grad_x = torch.empty_like(x) if needed[0] else None
        with torch.autocast(x.device.type, enabled=False):
            packed = _packed(weights, ctx.dtype)  # (out, features · in)
            grad = grad.to(ctx.dtype)
            # Transposed: with few outputs the product is up to twice as fast in this order.
            grad_packed = weights.spline.new_zeros(packed.T.shape)
            for rows, block, kernel in _blocks(x, knots, *ctx.settings, ctx.dtype, ctx.compiled):
                if grad_x is not None:
                    shape = (len(block), packed.shape[1] // x.shape[1], x.shape[1])
                    grad_features = workspace.empty("gradient", shape, x, ctx.dtype)
                    torch.mm(grad[rows], packed, out=grad_features.flatten(1))
                    values, grad_x[rows] = kernel.gradients(block, grad_features)
                else:
                    values = kernel.features(block)
                if not any(needed[1:]):
                    continue
                if ctx.dtype == grad_packed.dtype:
                    grad_packed.addmm_(values.flatten(1).T, grad[rows])
                else:
                    grad_packed += values.flatten(1).T @ grad[rows]
            return grad_x, None, None, None, None, *_unpacked(grad_packed, weights)


def _packed(weights: Weights, dtype: torch.dtype) -> Tensor:
    """All weights as (out, features · in), in the order of the features; in shared memory."""
    out, width, count = weights.spline.shape
    base = int(weights.base is not None)
    packed = workspace.empty("weights", (out, base + count, width), weights.spline, dtype)
    if weights.base is not None:
        packed[:, 0] = weights.base
    spline = weights.spline.transpose(1, 2)  # (out, n, in)
    if weights.scaler is None:
        packed[:, base:] = spline
    else:
        torch.mul(spline, weights.scaler[:, None], out=packed[:, base:])
    return packed.flatten(1)


def _unpacked(grad: Tensor, weights: Weights) -> Weights:
    """Gradients of the weights from that of the packed ones, (features · in, out)."""
    out, width, count = weights.spline.shape
    base = int(weights.base is not None)
    packed = workspace.empty("gradient of weights", (out, base + count, width), grad, grad.dtype)
    packed.flatten(1).copy_(grad.T)
    grad_base = packed[:, 0].clone() if base else None
    spline = packed[:, base:]  # (out, n, in)
    grad_spline = torch.empty_like(weights.spline, memory_format=torch.contiguous_format)
    if weights.scaler is None:
        return Weights(grad_base, grad_spline.copy_(spline.transpose(1, 2)), None)
    torch.mul(spline.transpose(1, 2), weights.scaler[..., None], out=grad_spline)
    return Weights(grad_base, grad_spline, (spline * weights.spline.transpose(1, 2)).sum(dim=1))


def _blocks(
    x: Tensor, knots: Tensor, order: int, activation: str | None, dtype: torch.dtype, compiled: bool
) -> Iterator[tuple[slice, Tensor, Kernel]]:
    """Blocks of x's rows with their places, and the kernel to compute their features."""
    exact = basis_dtype(x, knots)
    width, M = knots.shape
    if x.device.type == "cpu":
        size = min(max(BLOCK_ELEMENTS // width, BLOCK_ROWS[0]), BLOCK_ROWS[1])
    else:
        size = max(DEVICE_BLOCK_FEATURES // (width * M), 1)
    size = min(size, max(len(x), 1))
    kernel = make_kernel(size, knots.to(exact), order, activation, dtype, compiled)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        yield rows, x[rows].to(exact).contiguous(), kernel
