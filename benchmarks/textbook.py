"""The usual B-spline KAN layer, written as its formula says: the yardstick of the benchmarks."""

import torch.nn.functional as F
from torch import Tensor

from models.kan import KANLinear


def cox_de_boor(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """All B-splines by the recursion over dense tensors: (N, in), (in, M) -> (N, in, M - k - 1)."""
    x = x.unsqueeze(-1)
    basis = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).to(x.dtype)
    for k in range(1, order + 1):
        left = (x - knots[:, : -(k + 1)]) / (knots[:, k:-1] - knots[:, : -(k + 1)])
        right = (knots[:, k + 1 :] - x) / (knots[:, k + 1 :] - knots[:, 1:-k])
        basis = left * basis[..., :-1] + right * basis[..., 1:]
    return basis


def textbook_forward(layer: KANLinear, x: Tensor) -> Tensor:
    """The output of a KANLinear by the dense recursion and two products, all kept by autograd."""
    basis = cox_de_boor(x, layer.grid, layer.spline_order)
    base = F.linear(layer.base_activation(x), layer.base_weight, layer.bias)
    return base + F.linear(basis.flatten(-2), layer.scaled_spline_weight.flatten(1))
