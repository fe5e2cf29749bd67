"""Both KAN layers in plain operations: their definition.

Autograd, torch.export, torch.func and ONNX know all of these operations. The faster ways to run a
layer compute the same, and tests compare them with this.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import splines

aten = torch.ops.aten

# Base activations that every way to run computes: the function, and its backward
# (grad, x) -> grad_x.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, aten.silu_backward),
    "gelu": (F.gelu, aten.gelu_backward),
    "relu": (F.relu, lambda grad, x: aten.threshold_backward(grad, x, 0)),
    "tanh": (torch.tanh, lambda grad, x: aten.tanh_backward(grad, torch.tanh(x))),
    "identity": (lambda x: x, lambda grad, x: grad),
}


class Weights(NamedTuple):
    """The parameters of a KAN layer; base is None where the base term is computed elsewhere."""

    base: Tensor | None  # (out, in)
    spline: Tensor  # (out, in, n)
    scaler: Tensor | None  # (out, in)

    @property
    def present(self) -> list[Tensor]:
        """Those that are not None."""
        return [tensor for tensor in self if tensor is not None]


def kan_features(x: Tensor, knots: Tensor, order: int, activation: str | None) -> Tensor:
    """[b(x), B_1(x) … B_n(x)], or without b(x) where `activation` is None.

    By the Cox–de Boor recursion.

    Shapes: x (..., in), knots (in, M) of the same dtype -> (..., features, in).
    """
    t = knots.T
    span = t[-1] - t[0]
    x_near = x.unsqueeze(-2).clamp(t[0] - span, t[-1] + span)  # slopes far outside: 0, not NaN
    distance = x_near - t  # (..., M, in)
    # intervals are half open, except the last
    reached = (x_near > t) | ((x_near == t) & (t < t[-1]))
    values = (reached[..., :-1, :] & ~reached[..., 1:, :]).to(x.dtype)
    for degree in range(1, order + 1):
        shares = values * inverse_of_gaps(t[degree:] - t[:-degree])
        rising = distance[..., : -degree - 1, :] * shares[..., :-1, :]
        values = rising - distance[..., degree + 1 :, :] * shares[..., 1:, :]
    if activation is None:
        return values
    return torch.cat([ACTIVATIONS[activation][0](x.unsqueeze(-2)), values], dim=-2)


def inverse_of_gaps(gaps: Tensor) -> Tensor:
    """1 / gaps; equal knots make the recursion's 0 / 0, which counts as 0."""
    return torch.where(gaps > 0, 1 / gaps, 0)


def kan_linear(
    x: Tensor,
    knots: Tensor,
    order: int,
    activation: str | None,
    weights: Weights,
    dtype: torch.dtype,
) -> Tensor:
    """A KAN layer, (..., in) -> (..., out).

    Args:
        knots: (in, M).
        activation: a name in ACTIVATIONS, or None where there is no base weight.
        dtype: of the matrix product.
    """
    exact = splines.basis_dtype(x, knots)
    values = kan_features(x.to(exact), knots.to(exact), order, activation)
    packed = weights.spline.transpose(1, 2)  # (out, n, in)
    if weights.scaler is not None:
        packed = packed * weights.scaler[:, None]
    if weights.base is not None:
        packed = torch.cat([weights.base[:, None], packed], dim=1)
    return values.flatten(-2).to(dtype) @ packed.flatten(1).to(dtype).T


def group_functions(x: Tensor, knots: Tensor, pieces: Tensor, activation: str | None) -> Tensor:
    """φ(x) = b(x) + the spline of each channel's group, (..., in) -> (..., in).

    A spline is evaluated as the polynomial of its interval, which takes few operations whatever the
    number of basis functions.

    Args:
        x: (..., in); group g has the channels g·in / groups to (g + 1)·in / groups - 1.
        knots: (groups, M).
        pieces: (groups, M + 1, order + 1) coefficients of the polynomials before the first knot,
            on each interval in x minus its first knot, and behind the last, lowest power first
            (see `splines.polynomial_pieces`).
        activation: b, a name in ACTIVATIONS; None leaves b out.

    All of one dtype.
    """
    grouped = x.unflatten(-1, (len(knots), -1))  # (..., groups, channels of a group)
    edges = knots.T[..., None]  # (M, groups, 1)
    x_inside = grouped.clamp(edges[0], edges[-1])
    reached = [grouped >= edge for edge in edges[:-1].unbind()] + [grouped > edges[-1]]
    interval = torch.stack(reached).sum(dim=0)  # 0: before the first knot, M: behind the last
    group = torch.arange(len(knots), device=x.device)[:, None]
    coefficients = pieces[group, interval]  # (..., order + 1)
    starts = torch.cat([knots[:, :1], knots], dim=1)[group, interval]
    value = torch.zeros_like(x_inside)
    for coefficient in reversed(coefficients.unbind(-1)):
        value = value * (x_inside - starts) + coefficient
    value = value.flatten(-2)
    return value if activation is None else ACTIVATIONS[activation][0](x) + value


def group_kan_linear(
    x: Tensor,
    knots: Tensor,
    pieces: Tensor,
    activation: str | None,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """A group-KAN layer, weight · φ(x) + bias, (..., in) -> (..., out).

    Args:
        knots, pieces, activation: as in `group_functions`.
        weight: (out, in).
        bias: (out,), or None.
        dtype: of the matrix product.
    """
    exact = splines.basis_dtype(x, knots)
    values = group_functions(x.to(exact), knots.to(exact), pieces.to(exact), activation)
    y = values.to(dtype) @ weight.to(dtype).T
    return y if bias is None else y + bias.to(dtype)
