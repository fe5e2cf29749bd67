"""Layers in blocks of rows: a kernel makes a block's features, torch multiplies them by weights.

On a CPU a block's features stay in the cache; on other devices blocks bound the memory. The kernels
are those of `eager.py`, or on a GPU those of `inductor.py`.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .. import splines
from . import eager, inductor
from .cpp.build import processor
from .definition import Weights
from .memory import cached_table, workspace
from .torch_private import onednn_linear

BLOCK_FEATURES = 2**21  # on a CPU
BLOCK_ROWS = 256, 2048
DEVICE_BLOCK_FEATURES = 2**27  # on other devices

# MKL, which torch takes for float32 products on a CPU, ran at half of oneDNN's speed on an AMD
# processor with AVX-512. Without AVX-512, and on Intel's with it, MKL was the faster one.
ONEDNN = (
    onednn_linear is not None
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and "AuthenticAMD" in processor()
)


# ---- KAN layers ----


def kan_forward(
    x: Tensor,
    knots: Tensor,
    order: int,
    activation: str | None,
    weights: Weights,
    dtype: torch.dtype,
    compiled: bool,
) -> Tensor:
    """The layer, (N, in) -> (N, out) in `dtype`.

    Args:
        knots: (in, M), in the dtype in which features are computed.
        order: degree of the splines.
        activation: a name in `definition.ACTIVATIONS`, or None where there is no base weight.
        dtype: of the matrix product.
        compiled: whether a compiler may be used.
    """
    with no_autocast(x):
        packed = pack(weights, dtype)  # (out, features · in)
        y = packed.new_empty(len(x), len(packed))
        rows = block_rows(len(x), knots.numel(), x.device)
        kernel = _feature_kernel(rows, knots, order, activation, dtype, compiled)
        for part in rows:
            block = x[part].to(knots.dtype).contiguous()
            times_transposed(kernel.features(block).flatten(1), packed, out=y[part])
        return y


def kan_backward(
    grad: Tensor,
    x: Tensor,
    knots: Tensor,
    order: int,
    activation: str | None,
    weights: Weights,
    dtype: torch.dtype,
    compiled: bool,
    for_x: bool,
    for_weights: bool,
) -> list[Tensor]:
    """From `grad` (N, out) the gradient in x, if asked for, and then those in the weights.

    Args: as of `kan_forward`.
    """
    grad_x = torch.empty_like(x, dtype=knots.dtype, memory_format=torch.contiguous_format)
    with no_autocast(x):
        packed = pack(weights, dtype)  # (out, features · in)
        grad = grad.to(dtype).contiguous()
        grad_packed = None
        rows = block_rows(len(x), knots.numel(), x.device)
        kernel = _feature_kernel(rows, knots, order, activation, dtype, compiled)
        for part in rows:
            block = x[part].to(knots.dtype).contiguous()
            if for_x:
                shape = len(block), packed.shape[1] // x.shape[1], x.shape[1]
                grad_features = gradient_before(grad[part], packed).view(shape)
                features = kernel.gradients(block, grad_features, grad_x[part])
            else:
                features = kernel.features(block)
            if for_weights:
                grad_packed = _add_product(grad_packed, grad[part], features.flatten(1))
        grads = [grad_x.to(x.dtype)] if for_x else []
        if for_weights:
            grad_packed = torch.zeros_like(packed) if grad_packed is None else grad_packed
            grads += unpack(grad_packed, weights)
        return grads


def _feature_kernel(
    rows: list[slice],
    knots: Tensor,
    order: int,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
) -> eager.FeatureKernel:
    """The kernel for these blocks; see `kan_forward` for the arguments."""
    largest = max((part.stop - part.start for part in rows), default=0)
    settings = largest, knots, order, activation, dtype
    if knots.shape[1] > eager.DENSE_KNOTS:
        return eager.SparseFeatures(*settings)
    if knots.device.type == "cpu":
        if order <= eager.POLYNOMIAL_ORDER:
            _, steps = cached_table(splines.closed_knots, knots, order)
            if steps is not None:
                return eager.UniformFeatures(*settings, steps)
    elif compiled:
        kernel = inductor.feature_kernel(*settings)
        if kernel is not None:
            return kernel
    return eager.RecursionFeatures(*settings)


def pack(weights: Weights, dtype: torch.dtype) -> Tensor:
    """All weights as (out, features · in), in memory that the next call writes to."""
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


def unpack(grad: Tensor, weights: Weights) -> list[Tensor]:
    """Gradients of the weights that are there from that of the packed ones."""
    out, width, count = weights.spline.shape
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in weights.present]
    base = int(weights.base is not None)
    packed = grad.view(out, base + count, width)
    spline = packed[:, base:].transpose(1, 2)  # (out, in, n)
    if weights.base is not None:
        grads[0].copy_(packed[:, 0])
    if weights.scaler is None:
        grads[-1].copy_(spline)
    else:
        torch.mul(spline, weights.scaler[..., None], out=grads[-2])
        grads[-1].copy_((spline * weights.spline).sum(dim=-1))
    return grads


# ---- group-KAN layers ----


def group_kan_forward(
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    activation: str | None,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    compiled: bool,
) -> Tensor:
    """The layer, (N, in) -> (N, out) in `dtype`.

    Args:
        knots, pieces: as in `definition.group_functions`, in the dtype in which φ is computed.
        activation: a name in `definition.ACTIVATIONS`, or None.
        weight: (out, in).
        bias: (out,), or None.
        dtype: of the matrix product.
        compiled: whether a compiler may be used.
    """
    with no_autocast(x):
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        y = x.new_empty(len(x), len(weight), dtype=dtype)
        kernel = _group_kernel(knots, pieces, activation, dtype, compiled)
        for part in block_rows(len(x), x.shape[1], x.device):
            block = x[part].to(knots.dtype).contiguous()
            times_transposed(kernel.values(block), weight, bias, out=y[part])
        return y


def group_kan_backward(
    grad: Tensor,
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    activation: str | None,
    weight: Tensor,
    dtype: torch.dtype,
    compiled: bool,
    for_weight: bool,
) -> list[Tensor]:
    """Gradients in x, in pieces and, if asked for, in weight from `grad` (N, out).

    Args: as of `group_kan_forward`.
    """
    with no_autocast(x):
        grad, weight_used = grad.to(dtype).contiguous(), weight.to(dtype)
        grad_x = torch.empty_like(x, dtype=knots.dtype, memory_format=torch.contiguous_format)
        grad_pieces = torch.zeros_like(pieces)
        grad_weight = torch.zeros_like(weight) if for_weight and not len(x) else None
        kernel = _group_kernel(knots, pieces, activation, dtype, compiled)
        for part in block_rows(len(x), x.shape[1], x.device):
            block = x[part].to(knots.dtype).contiguous()
            grad_values = gradient_before(grad[part], weight_used)
            values, moments = kernel.gradients(block, grad_values, grad_x[part])
            grad_pieces += moments
            if for_weight:
                grad_weight = _add_product(grad_weight, grad[part], values)
        return [grad_x, grad_pieces] + ([] if grad_weight is None else [grad_weight])


def _group_kernel(
    knots: Tensor, pieces: Tensor, activation: str | None, dtype: torch.dtype, compiled: bool
) -> eager.GroupKernel:
    """The kernel for blocks of rows; see `group_kan_forward` for the arguments."""
    settings = knots, pieces, activation, dtype
    if compiled and knots.device.type != "cpu" and knots.shape[1] <= eager.DENSE_KNOTS:
        kernel = inductor.group_kernel(*settings)
        if kernel is not None:
            return kernel
    return eager.GroupFunctions(*settings)


# ---- both ----


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off on the device of x, where it has any (`meta` has none)."""
    device = x.device.type
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def block_rows(rows: int, values: int, device: torch.device) -> list[slice]:
    """The rows in blocks of about equal size, which the features' memory decides.

    Args:
        rows: how many there are.
        values: computed for each of them.
    """
    if device.type == "cpu":
        size = min(max(BLOCK_FEATURES // values, BLOCK_ROWS[0]), BLOCK_ROWS[1])
    else:
        size = max(DEVICE_BLOCK_FEATURES // values, 1)
    size = math.ceil(rows / max(round(rows / size), 1))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size or 1)]


def times_transposed(
    a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """a @ b.T + bias, by the faster library; in `out`, if given. Autograd does not know of it."""
    if ONEDNN and onednn_linear and a.dtype == torch.float32 and a.device.type == "cpu":
        # with gaps between its rows a matrix goes to code that is hundreds of times slower
        a, b = (m if m.is_contiguous() or m.T.is_contiguous() else m.contiguous() for m in (a, b))
        product = onednn_linear(a, b, bias, "none", [], "")
        return product if out is None else out.copy_(product)
    if bias is None:
        return torch.mm(a, b.T, out=out)
    return torch.addmm(bias, a, b.T, out=out)


def gradient_before(grad: Tensor, weight: Tensor) -> Tensor:
    """grad @ weight, the gradient in a product's left factor; valid until the next call."""
    shape = len(grad), weight.shape[1]
    # oneDNN's operator cannot write into an existing tensor
    out = None if ONEDNN else workspace.empty("gradient", shape, grad, grad.dtype)
    return times_transposed(grad, weight.T, out=out)


def _add_product(total: Tensor | None, grad: Tensor, values: Tensor) -> Tensor:
    """total + grad.T @ values, at least in float32; the product alone where there is no total."""
    product = times_transposed(grad.T, values.T)
    product = product.to(splines.basis_dtype(product, product))
    return product if total is None else total.add_(product)
