"""The features of a KAN layer's input, [b(x), B_1(x) … B_n(x)]: their definition.

`features` is written in operations that autograd, export and functional transforms know;
`kan_kernels` has faster ways to compute the same.
"""

import math
import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten

# Base activations that the kernels compute: the function, and its backward (grad, x) -> grad_x.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, aten.silu_backward),
    "gelu": (F.gelu, aten.gelu_backward),
    "relu": (F.relu, lambda grad, x: aten.threshold_backward(grad, x, 0)),
    "tanh": (torch.tanh, lambda grad, x: aten.tanh_backward(grad, torch.tanh(x))),
    "identity": (lambda x: x, lambda grad, x: grad),
}

# The modules of these, by the same names.
BASE_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
NAMES: dict[object, str] = {kind: name for name, kind in BASE_ACTIVATIONS.items()}


def activation_name(activation: object) -> str | None:
    """Name in ACTIVATIONS of an activation module, or None for any other and for functions."""
    if isinstance(activation, nn.GELU) and activation.approximate != "none":
        return None
    return NAMES.get(type(activation))


def features(x: Tensor, knots: Tensor, order: int, activation: str | None) -> Tensor:
    """[b(x), B_1(x) … B_n(x)], or without b(x) where `activation` is None.

    By the recursion of Cox and de Boor, in operations that autograd and ONNX know.

    Shapes: x (..., in), knots (in, M) of the same dtype -> (..., features, in).
    """
    t = knots.T
    span = t[-1] - t[0]
    place = x.unsqueeze(-2).clamp(t[0] - span, t[-1] + span)  # slopes far outside are 0, not NaN
    distance = place - t  # (..., M, in)
    reached = (place > t) | ((place == t) & (t < t[-1]))  # half open intervals, but for the last
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


class _Workspace(threading.local):
    """Buffers that are used again, one set per thread, and grow to the largest size asked for.

    A large tensor that comes fresh from the system costs as much in page faults as the features
    cost to compute. On other devices than the CPU, torch keeps such memory itself.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        # glibc returns freed memory to the system beyond twice the largest block freed so far (its
        # upper limit is 32 MB), and the products of the next block would have to fetch it again
        torch.empty(2**25 - 2**12, dtype=torch.uint8, device="cpu")

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the device of `like`, which the next one of that name replaces."""
        if like.device.type != "cpu":
            return like.new_empty(shape, dtype=dtype)
        size = math.prod(shape)
        buffer = self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # its tensors could not be written to outside it
                buffer = torch.empty(size, dtype=dtype, device="cpu")
            self.buffers[name, dtype] = buffer
        return buffer[:size].view(shape)


workspace = _Workspace()
