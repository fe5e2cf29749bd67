"""The weights of a KAN layer as one matrix, in the order of the features, and gradients from it.

And a check that weights can be written to, for whatever changes a layer from outside.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.kan_features import workspace

# of KAN layers and linear ones
WEIGHTS = ("grid", "base_weight", "spline_weight", "spline_scaler", "weight", "bias", "affine")

# of hooks that compute a weight, by what they add to its name
REMOVALS = {"_mask": "prune.remove", "_u": "remove_spectral_norm", "_g": "remove_weight_norm"}


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


def check_writable(*modules: nn.Module, names: Iterable[str] = WEIGHTS) -> None:
    """Makes sure that these tensors of the modules, and of those in them, can be written to.

    Parametrizations, weight norm and pruning masks compute a weight from other tensors before each
    use, and what is written to it is lost.

    Raises:
        ValueError: a weight is computed so; the text says what to do first.
    """
    for module in (part for whole in modules for part in whole.modules()):
        for name in names:
            remedy = _how_to_own(module, name)
            if remedy:
                raise ValueError(
                    f"{name} of {module._get_name()} is computed from other tensors, and a change"
                    f" of it would be lost; call {remedy} first; nothing was changed"
                )


def _how_to_own(module: nn.Module, name: str) -> str:
    """What makes a computed weight a parameter again; empty for one that is not computed."""
    call = f"(layer, {name!r})"
    if parametrize.is_parametrized(module, name):
        return f"torch.nn.utils.parametrize.remove_parametrizations{call}"
    if not isinstance(vars(module).get(name), Tensor):  # parameters and buffers are kept elsewhere
        return ""
    found = (way for suffix, way in REMOVALS.items() if hasattr(module, name + suffix))
    return next((f"torch.nn.utils.{way}{call}" for way in found), "what makes it a parameter again")
