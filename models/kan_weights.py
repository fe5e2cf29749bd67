"""The weights of a KAN layer as one matrix, in the order of the features, and gradients from it."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from models import native
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


def pack(weights: Weights, dtype: torch.dtype, library: ctypes.CDLL | None) -> Tensor:
    """All weights as (out, features · in), in memory that the next call writes to.

    Args:
        library: of `kan_kernels.native_library`, for weights of the type that it computes in.
    """
    out, width, count = weights.spline.shape
    base = int(weights.base is not None)
    packed = workspace.empty("weights", (out, base + count, width), weights.spline, dtype)
    if library is not None and dtype == weights.spline.dtype:
        native.call(library.kan_pack, _sizes(weights), *_contiguous(weights), packed)
        return packed.flatten(1)
    if weights.base is not None:
        packed[:, 0] = weights.base
    spline = weights.spline.transpose(1, 2)  # (out, n, in)
    if weights.scaler is None:
        packed[:, base:] = spline
    else:
        torch.mul(spline, weights.scaler[:, None], out=packed[:, base:])
    return packed.flatten(1)


def unpack(grad: Tensor, weights: Weights, library: ctypes.CDLL | None) -> list[Tensor]:
    """Gradients of the weights that are there from that of the packed ones.

    Args:
        library: as for `pack`.
    """
    out, width, count = weights.spline.shape
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in weights.present]
    if library is not None and grad.dtype == weights.spline.dtype:
        own = iter(grads)
        places = (None if tensor is None else next(own) for tensor in weights)
        _, *used = _contiguous(weights)
        native.call(library.kan_unpack, _sizes(weights), grad.contiguous(), *used, *places)
        return grads
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


def _sizes(weights: Weights) -> tuple[int, int, int]:
    out, width, _ = weights.spline.shape
    return width, out, min(native.parts(weights.spline.numel()), out)


def _contiguous(weights: Weights) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in weights]
