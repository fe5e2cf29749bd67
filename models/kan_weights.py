"""The weights of a KAN layer as one matrix, in the order of the features, and gradients from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from models.kan_features import workspace


class Weights(NamedTuple):
    """The parameters of a layer; base is None where the base term is computed elsewhere."""

    base: Tensor | None  # (out, in)
    spline: Tensor  # (out, in, n)
    scaler: Tensor | None  # (out, in)

    @property
    def present(self) -> list[Tensor]:
        """Those that are there."""
        return [tensor for tensor in self if tensor is not None]


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
