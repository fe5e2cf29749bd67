"""KAN layers as operators of torch, with the choice of the way to run them.

An operator keeps only its input: the features, n + 1 times as large, are computed again in the
backward pass, block by block, so that they need not leave the cache. To torch.compile it is opaque,
which is faster than what it would make of the formula.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.flop_counter import register_flop_formula

from . import blocks, definition
from .cpp import kernels as cpp
from .definition import Weights
from .torch_private import OpOverload, are_functorch_transforms_active, below_autograd, forward_ad

MODES = ("auto", "compiled", "eager", "plain")
MODE_VARIABLE = "KAN_MODE"  # of the environment; for layers whose mode is "auto"
COMPILE_ELEMENTS = 2**13  # inputs smaller than this do not repay the compiler
_without_gradients = False  # see `compile_without_gradients`


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
        activation: b, a name in `definition.ACTIVATIONS`; None if there is no base weight.
        weights: see there.
        mode: "compiled", "eager" or "plain"; "auto" takes what KAN_MODE says in the environment,
            and else compiles where gradients are recorded (see `compile_without_gradients`) and x
            is large enough to repay it. What torch.export or torch.func traces is always "plain".

    Returns:
        (..., out).

    Raises:
        ValueError: KAN_MODE is none of these.
    """
    mode = chosen_mode(x, weights, mode)
    dtype = _product_dtype(x, weights.spline)
    if mode == "plain":
        return definition.kan_linear(x, knots, order, activation, weights, dtype)
    flat = x.reshape(-1, x.shape[-1])
    y = _kan(flat, knots, *weights, order, activation, dtype, mode == "compiled")
    return y.reshape(*x.shape[:-1], len(weights.spline))


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
        knots, pieces, activation: as in `definition.group_functions`.
        weight: (out, in).
        bias: (out,), or None.
        mode: as in `kan_linear`.

    Returns:
        (..., out).

    Raises:
        ValueError: KAN_MODE in the environment is no mode.
    """
    mode = chosen_mode(x, (pieces, weight), mode)
    dtype = _product_dtype(x, weight)
    if mode == "plain":
        return definition.group_kan_linear(x, knots, pieces, activation, weight, bias, dtype)
    flat = x.reshape(-1, x.shape[-1])
    y = _group_kan(flat, knots, pieces, weight, bias, activation, dtype, mode == "compiled")
    return y.reshape(*x.shape[:-1], len(weight))


# ---- the choice of the way to run ----


def check_mode(mode: str) -> None:
    """Raises a ValueError unless `mode` is one of MODES."""
    if mode not in MODES:
        raise ValueError(f"the mode of a KAN layer must be one of {', '.join(MODES)}, not {mode!r}")


@contextmanager
def compile_without_gradients() -> Iterator[None]:
    """Within, layers run compiled also where no gradients are recorded: for many batches."""
    global _without_gradients
    before, _without_gradients = _without_gradients, True
    try:
        yield
    finally:
        _without_gradients = before


def chosen_mode(x: Tensor, weights: Iterable[Tensor | None], mode: str) -> str:
    """The mode in which a layer runs, see `kan_linear`; never "auto"."""
    transformed = are_functorch_transforms_active() or forward_ad._current_level >= 0
    if torch.compiler.is_exporting() or transformed:
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


def _product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type of a layer's matrix product: autocast's, or the weight's."""
    device = x.device.type
    single = weight.dtype != torch.float64  # which autocast leaves as it is
    if single and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _exact_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if one of the tensors is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


# ---- operators written in Python ----
# torch.library.custom_op would do the same, but its checks of every call take longer than the
# product of a small layer.


def _operator(name: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """Registers a function as kansformer::`name`.

    It writes to none of its arguments and returns none of them, nor views of them.
    """

    def register(function: Callable[..., Any]) -> OpOverload:
        full = f"kansformer::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(full, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(full, "default", function)
        return getattr(torch.ops.kansformer, name).default

    return register


def _differentiate(
    operator: OpOverload, tensors: int, gradients: Callable[..., tuple[Tensor | None, ...]]
) -> None:
    """Gives an operator its gradient.

    Args:
        tensors: how many arguments are tensors, which are kept; they come first.
        gradients: of ctx and the gradients of the results, one for each argument. The tensors are
            in ctx.saved_tensors, the other arguments in ctx.settings.
    """

    def run(*arguments: Any) -> Any:
        with below_autograd():
            return operator(*arguments)

    class Differentiable(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
            ctx.save_for_backward(*arguments[:tensors])
            ctx.settings = arguments[tensors:]
            results = run(*arguments)
            return tuple(results) if isinstance(results, list) else results

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return gradients(ctx, *grads)

    def recorded(*arguments: Any) -> Tensor | list[Tensor]:
        if not torch.is_grad_enabled():
            return run(*arguments)
        results = Differentiable.apply(*arguments)
        return list(results) if isinstance(results, tuple) else results

    torch.library.impl(operator.name(), "Autograd", recorded)


def _is_differentiated_again() -> bool:
    """Within a backward pass: whether the gradients will be differentiated again."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _gradients_of_definition(ctx: Any, y: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again, by `definition`, which gave y."""
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
    inputs = [ctx.saved_tensors[i] for i in wanted]
    computed = torch.autograd.grad(y, inputs, grad, create_graph=True, materialize_grads=True)
    grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for i, gradient in zip(wanted, computed, strict=True):
        grads[i] = gradient
    return tuple(grads)


def _no_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    raise RuntimeError("under torch.compile a KAN layer has no second derivatives")


# ---- KAN layers ----


@_operator("kan_linear")
def _kan(
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
    """The layer, (N, in) -> (N, out)."""
    weights = Weights(base, spline, scaler)
    if compiled:
        exact_knots = cpp.contiguous(knots, _exact_dtype(x, knots, spline))
        library = cpp.kan_library(exact_knots, order, activation)
        if library is not None:
            return cpp.kan_forward(library, x, exact_knots, order, weights).to(dtype)
    knots = knots.to(_exact_dtype(x, knots))
    return blocks.kan_forward(x, knots, order, activation, weights, dtype, compiled)


@_operator("kan_linear_backward")
def _kan_backward(
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
    wanted = for_x, for_weights
    if compiled:
        exact_knots = cpp.contiguous(knots, _exact_dtype(x, knots, spline))
        library = cpp.kan_library(exact_knots, order, activation)
        if library is not None:
            return cpp.kan_backward(library, grad, x, exact_knots, order, weights, *wanted)
    knots = knots.to(_exact_dtype(x, knots))
    settings = order, activation, weights, dtype, compiled
    return blocks.kan_backward(grad, x, knots, *settings, *wanted)


def _kan_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, knots, *tensors = ctx.saved_tensors
    for_x, _, *needed = ctx.needs_input_grad[:5]
    if _is_differentiated_again():
        order, activation, dtype, _ = ctx.settings
        y = definition.kan_linear(x, knots, order, activation, Weights(*tensors), dtype)
        return _gradients_of_definition(ctx, y, grad)
    present = [i for i, tensor in enumerate(tensors, start=2) if tensor is not None]
    computed = _kan_backward(grad, x, knots, *tensors, *ctx.settings, for_x, any(needed))
    grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for i, gradient in zip([0] * for_x + present * any(needed), computed, strict=True):
        grads[i] = gradient
    return tuple(grads)


_differentiate(_kan, 5, _kan_gradients)
_differentiate(_kan_backward, 6, _no_gradient)


@torch.library.register_fake(_kan)
def _(x: Tensor, knots: Tensor, base: Tensor | None, spline: Tensor, *settings: Any) -> Tensor:
    return x.new_empty(x.shape[0], spline.shape[0], dtype=settings[3])


@torch.library.register_fake(_kan_backward)
def _(grad: Tensor, x: Tensor, knots: Tensor, *tensors_and_settings: Any) -> list[Tensor]:
    *weights, _, _, _, _, for_x, for_weights = tensors_and_settings
    like = [x] * for_x + weights * for_weights
    return [tensor.new_empty(tensor.shape) for tensor in like if tensor is not None]


@register_flop_formula(torch.ops.kansformer.kan_linear)
def _kan_flops(x: Any, knots: Any, base: Any, spline: Any, *args: Any, **options: Any) -> int:
    """Of the matrix product, as torch counts those of other layers; all arguments are shapes."""
    rows, width = x
    out, _, count = spline
    return 2 * rows * width * (count + (base is not None)) * out


@register_flop_formula(torch.ops.kansformer.kan_linear_backward)
def _kan_backward_flops(
    grad: Any, x: Any, knots: Any, base: Any, spline: Any, *args: Any, **options: Any
) -> int:
    """The same, once for each of the two gradients that are asked for."""
    for_x, for_weights = args[-2:]
    return _kan_flops(x, knots, base, spline) * (for_x + for_weights)


# ---- group-KAN layers ----


@_operator("group_kan_linear")
def _group_kan(
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
) -> Tensor:
    """The layer, (N, in) -> (N, out)."""
    if compiled:
        exact = _exact_dtype(x, knots, weight)
        tables = knots.to(exact), pieces.to(exact)
        library = cpp.group_kan_library(*tables, activation)
        if library is not None:
            return cpp.group_kan_forward(library, x, *tables, weight, bias).to(dtype)
    exact = _exact_dtype(x, knots)
    tables = knots.to(exact), pieces.to(exact)
    return blocks.group_kan_forward(x, *tables, activation, weight, bias, dtype, compiled)


@_operator("group_kan_linear_backward")
def _group_kan_backward(
    grad: Tensor,
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    weight: Tensor,
    activation: str | None,
    dtype: torch.dtype,
    compiled: bool,
    for_weight: bool,
) -> list[Tensor]:
    """Gradients in x, in pieces and, if asked for, in weight."""
    grads = None
    if compiled:
        exact = _exact_dtype(x, knots, weight)
        tables = knots.to(exact), pieces.to(exact)
        library = cpp.group_kan_library(*tables, activation)
        if library is not None:
            grads = cpp.group_kan_backward(library, grad, x, *tables, weight, for_weight)
    if grads is None:
        exact = _exact_dtype(x, knots)
        tables = knots.to(exact), pieces.to(exact)
        grads = blocks.group_kan_backward(
            grad, x, *tables, activation, weight, dtype, compiled, for_weight
        )
    return [g.to(like.dtype) for g, like in zip(grads, (x, pieces, weight), strict=False)]


def _group_kan_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, knots, pieces, weight, bias = ctx.saved_tensors
    if _is_differentiated_again():
        activation, dtype, _ = ctx.settings
        y = definition.group_kan_linear(x, knots, pieces, activation, weight, bias, dtype)
        return _gradients_of_definition(ctx, y, grad)
    grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for_weight, for_bias = ctx.needs_input_grad[3:5]
    computed = _group_kan_backward(grad, x, knots, pieces, weight, *ctx.settings, for_weight)
    for i, gradient in zip((0, 2, 3), computed, strict=False):
        grads[i] = gradient
    if for_bias:
        grads[4] = grad.sum(dim=0).to(bias.dtype)
    return tuple(grads)


_differentiate(_group_kan, 5, _group_kan_gradients)
_differentiate(_group_kan_backward, 5, _no_gradient)


@torch.library.register_fake(_group_kan)
def _(x: Tensor, knots: Tensor, pieces: Tensor, weight: Tensor, *settings: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=settings[2])


@torch.library.register_fake(_group_kan_backward)
def _(
    grad: Tensor, x: Tensor, knots: Tensor, pieces: Tensor, weight: Tensor, *settings: Any
) -> list[Tensor]:
    like = (x, pieces, weight) if settings[-1] else (x, pieces)
    return [tensor.new_empty(tensor.shape) for tensor in like]


@register_flop_formula(torch.ops.kansformer.group_kan_linear)
def _group_kan_flops(
    x: Any, knots: Any, pieces: Any, weight: Any, *args: Any, **options: Any
) -> int:
    """Of the matrix product, as torch counts those of other layers; all arguments are shapes."""
    return 2 * x[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.kansformer.group_kan_linear_backward)
def _group_kan_backward_flops(
    grad: Any, x: Any, knots: Any, pieces: Any, weight: Any, *args: Any, **options: Any
) -> int:
    """The same for the gradient in x, and for that in the weights if it is asked for."""
    return (1 + args[-1]) * _group_kan_flops(x, knots, pieces, weight)
