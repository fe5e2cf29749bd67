"""The product at the heart of a KAN layer: features of every input value times weights.

Written as an operator that keeps only its input: the features, n + 1 times as large, are computed
again in the backward pass, block by block, so that they need not leave the cache. On a CPU with a
compiler `kan_native` does all of it; else kernels of `kan_kernels` and torch's matrix product take
turns. To torch.compile it is one opaque operator, which is faster than what it would make of the
formula.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from models import kan_native, native
from models.kan_features import features, workspace
from models.kan_kernels import Kernel, make_kernel
from models.kan_weights import Weights, pack, unpack
from models.operators import differentiate, operator, refuse
from models.splines import basis_dtype

MODES = ("auto", "compiled", "eager", "plain")
MODE_VARIABLE = "KAN_MODE"  # of the environment; for layers whose mode is "auto"
COMPILE_ELEMENTS = 2**13  # inputs smaller than this do not repay the compiler
_without_gradients = False  # see `compile_without_gradients`

# MKL, which torch takes for float32 products on a CPU, ran at half of oneDNN's speed on an AMD
# processor with AVX-512. Without AVX-512, and on Intel's with it, MKL was the faster one.
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and "AuthenticAMD" in native.processor()
)

BLOCK_FEATURES = 2**21  # on a CPU a block's features stay in the cache
BLOCK_ROWS = 256, 2048
DEVICE_BLOCK_FEATURES = 2**27  # elsewhere a block is there to bound the memory


def kan_linear(
    x: Tensor,
    knots: Tensor,
    order: int,
    activation: str | None,
    weights: Weights,
    mode: str = "auto",
) -> Tensor:
    """Σ_i base[o, i] · b(x_i) + Σ_i Σ_j scaler[o, i] · spline[o, i, j] · B_j(x_i).

    Features are computed in float32 or better, also under autocast; at most the matrix product runs
    in autocast's type.

    Args:
        x: (..., in).
        knots: (in, M), for M - order - 1 B-splines.
        order: their degree.
        activation: b, a name in `kan_features.ACTIVATIONS`; None if there is no base weight.
        weights: see there.
        mode: "compiled", "eager" or "plain"; "auto" takes what KAN_MODE says in the environment,
            and else compiles where gradients are recorded (see `compile_without_gradients`) and x
            is large enough to repay it. What torch.export or torch.func traces is always "plain".

    Returns:
        (..., out).

    Raises:
        ValueError: KAN_MODE is none of these.
    """
    mode = way_to_run(x, weights, mode)
    dtype = product_dtype(x, weights.spline)
    if mode == "plain":
        return _plain(x, knots, order, activation, weights, dtype)
    flat = x.reshape(-1, x.shape[-1])
    y = _forward(flat, knots, *weights, order, activation, dtype, mode == "compiled")
    return y.reshape(*x.shape[:-1], len(weights.spline))


@contextmanager
def compile_without_gradients() -> Iterator[None]:
    """Within, layers run compiled also where no gradients are recorded: for many batches."""
    global _without_gradients
    before, _without_gradients = _without_gradients, True
    try:
        yield
    finally:
        _without_gradients = before


def check_mode(mode: str) -> None:
    """Raises a ValueError unless `mode` is one of MODES."""
    if mode not in MODES:
        raise ValueError(f"the mode of a KAN layer must be one of {', '.join(MODES)}, not {mode!r}")


def way_to_run(x: Tensor, weights: Iterable[Tensor | None], mode: str) -> str:
    """The mode in which a layer runs, see `kan_linear`; never "auto"."""
    if torch.compiler.is_exporting() or _is_transformed():
        return "plain"
    if mode == "auto":
        mode = os.environ.get(MODE_VARIABLE) or "auto"
    check_mode(mode)
    if mode != "auto":
        return mode
    recorded = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *weights)
    )
    repays = (recorded or _without_gradients) and x.numel() >= COMPILE_ELEMENTS
    return "compiled" if repays else "eager"


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which need `_plain`."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type of a layer's matrix product: autocast's, or the weight's."""
    device = x.device.type
    single = weight.dtype != torch.float64  # which autocast leaves as it is
    if single and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


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
    values = features(x.to(exact), knots.to(exact), order, activation)
    packed = weights.spline.transpose(1, 2)  # (out, n, in)
    if weights.scaler is not None:
        packed = packed * weights.scaler[:, None]
    if weights.base is not None:
        packed = torch.cat([weights.base[:, None], packed], dim=1)
    return values.flatten(-2).to(dtype) @ packed.flatten(1).to(dtype).T


@operator("kan_linear")
def _forward(
    x: Tensor,
    knots: Tensor,
    base: Tensor | None,
    spline: Tensor,
    scaler: Tensor | None,
    order: int,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
) -> Tensor:
    """The layer, (N, in) -> (N, out); without a compiler in blocks."""
    weights = Weights(base, spline, scaler)
    exact = torch.promote_types(basis_dtype(x, knots), spline.dtype)
    exact_knots = native.as_given(knots, exact)
    library = kan_native.library_for(exact_knots, order, activation, compiled)
    if library is not None:
        return kan_native.forward(library, x, exact_knots, order, weights).to(dtype)
    with no_autocast(x):
        packed = pack(weights, dtype)  # (out, features · in)
        y = packed.new_empty(len(x), len(packed))
        for rows, block, kernel in _blocks(x, knots, order, activation, dtype, compiled):
            times_transposed(kernel.features(block).flatten(1), packed, out=y[rows])
        return y


@torch.library.register_fake(_forward)
def _(x: Tensor, knots: Tensor, base: Tensor | None, spline: Tensor, *settings: Any) -> Tensor:
    return x.new_empty(x.shape[0], spline.shape[0], dtype=settings[3])


@operator("kan_linear_backward")
def _backward(
    grad: Tensor,
    x: Tensor,
    knots: Tensor,
    base: Tensor | None,
    spline: Tensor,
    scaler: Tensor | None,
    order: int,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
    for_x: bool,
    for_weights: bool,
) -> list[Tensor]:
    """Gradients in x, if asked for, and then in those of the weights that are there."""
    weights = Weights(base, spline, scaler)
    exact = torch.promote_types(basis_dtype(x, knots), spline.dtype)
    exact_knots = native.as_given(knots, exact)
    library = kan_native.library_for(exact_knots, order, activation, compiled)
    if library is not None:
        wanted = for_x, for_weights
        return kan_native.backward(library, grad, x, exact_knots, order, weights, *wanted)
    exact = basis_dtype(x, knots)
    grad_x = torch.empty_like(x, dtype=exact, memory_format=torch.contiguous_format)
    with no_autocast(x):
        packed = pack(weights, dtype)  # (out, features · in)
        grad = grad.to(dtype).contiguous()
        grad_packed = None
        for rows, block, kernel in _blocks(x, knots, order, activation, dtype, compiled):
            if for_x:
                shape = len(block), packed.shape[1] // x.shape[1], x.shape[1]
                grad_features = gradient_before(grad[rows], packed).view(shape)
                values = kernel.gradients(block, grad_features, grad_x[rows])
            else:
                values = kernel.features(block)
            if for_weights:
                product = times_transposed(grad[rows].T, values.flatten(1).T)
                product = product.to(basis_dtype(product, product))
                grad_packed = product if grad_packed is None else grad_packed.add_(product)
        found = [grad_x.to(x.dtype)] if for_x else []
        if for_weights:
            grad_packed = torch.zeros_like(packed) if grad_packed is None else grad_packed
            found += unpack(grad_packed, weights)
        return found


@torch.library.register_fake(_backward)
def _(grad: Tensor, x: Tensor, knots: Tensor, *tensors_and_settings: Any) -> list[Tensor]:
    *weights, _, _, _, _, for_x, for_weights = tensors_and_settings
    like = [x] * for_x + weights * for_weights
    return [tensor.new_empty(tensor.shape) for tensor in like if tensor is not None]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, knots, *tensors = ctx.saved_tensors
    for_x, _, *needed = ctx.needs_input_grad[:5]
    order, activation, dtype, _ = ctx.settings
    grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # the gradient is to be differentiated again
        y = _plain(x, knots, order, activation, Weights(*tensors), dtype)
        wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
        inputs = [ctx.saved_tensors[i] for i in wanted]
        found = torch.autograd.grad(y, inputs, grad, create_graph=True, materialize_grads=True)
    else:
        present = [i for i, tensor in enumerate(tensors, start=2) if tensor is not None]
        wanted = [0] * for_x + present * any(needed)
        found = _backward(grad, x, knots, *tensors, *ctx.settings, for_x, any(needed))
    for i, gradient in zip(wanted, found, strict=True):
        grads[i] = gradient
    return tuple(grads)


differentiate(_forward, 5, _gradients)
differentiate(_backward, 6, refuse)


@register_flop_formula(torch.ops.kansformer.kan_linear)
def _flops(x: Any, knots: Any, base: Any, spline: Any, *args: Any, **options: Any) -> int:
    """Of the matrix product, as torch counts those of other layers; all arguments are shapes."""
    rows, width = x
    out, _, count = spline
    return 2 * rows * width * (count + (base is not None)) * out


@register_flop_formula(torch.ops.kansformer.kan_linear_backward)
def _backward_flops(
    grad: Any, x: Any, knots: Any, base: Any, spline: Any, *args: Any, **options: Any
) -> int:
    """The same, once for each of the two gradients that are asked for."""
    for_x, for_weights = args[-2:]
    return _flops(x, knots, base, spline) * (for_x + for_weights)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off on the device of x, where it has any (`meta` has none)."""
    device = x.device.type
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def times_transposed(
    a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """a @ b.T + bias, by the faster library; in `out`, if given. Autograd does not know of it."""
    if ONEDNN and a.dtype == torch.float32 and a.device.type == "cpu":
        # with gaps between its rows a matrix goes to code that is hundreds of times slower
        a, b = (m if m.is_contiguous() or m.T.is_contiguous() else m.contiguous() for m in (a, b))
        product = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return product if out is None else out.copy_(product)
    if bias is None:
        return torch.mm(a, b.T, out=out)
    return torch.addmm(bias, a, b.T, out=out)


def gradient_before(grad: Tensor, weight: Tensor) -> Tensor:
    """grad @ weight, the gradient in front of a product; valid until the next call."""
    shape = len(grad), weight.shape[1]
    # oneDNN's operator cannot write into a tensor that is there
    out = None if ONEDNN else workspace.empty("gradient", shape, grad, grad.dtype)
    return times_transposed(grad, weight.T, out=out)


def _blocks(
    x: Tensor, knots: Tensor, order: int, activation: str | None, dtype: torch.dtype, compiled: bool
) -> Iterator[tuple[slice, Tensor, Kernel]]:
    """Blocks of x's rows with their places, and the kernel to compute their features."""
    exact = basis_dtype(x, knots)
    places = block_rows(len(x), knots.numel(), x.device)
    largest = max((rows.stop - rows.start for rows in places), default=0)
    kernel = make_kernel(largest, knots.to(exact), order, activation, dtype, compiled)
    for rows in places:
        yield rows, x[rows].to(exact).contiguous(), kernel


def block_rows(rows: int, values: int, device: torch.device) -> list[slice]:
    """The rows in blocks of about one size, which the features' memory decides.

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
