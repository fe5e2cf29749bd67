"""The usual KAN layer, to be measured against: the recursion as the textbook writes it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kan import KANLinear


def cox_de_boor(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """Every B-spline at x (N, in) on knots (in, M), (N, in, M - order - 1)."""
    x = x.unsqueeze(-1)
    basis = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).to(x.dtype)
    for d in range(1, order + 1):
        rising = (x - knots[:, : -(d + 1)]) / (knots[:, d:-1] - knots[:, : -(d + 1)])
        falling = (knots[:, d + 1 :] - x) / (knots[:, d + 1 :] - knots[:, 1:-d])
        basis = rising * basis[..., :-1] + falling * basis[..., 1:]
    return basis


class TextbookKANLinear(nn.Module):
    """A `KANLinear`'s own parameters, run the way that efficient-kan and most others do."""

    def __init__(self, layer: KANLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        layer = self.layer
        flat = x.reshape(-1, layer.in_features)
        base = F.linear(layer.base_activation(flat), layer.base_weight)
        basis = cox_de_boor(flat, layer.grid, layer.spline_order)
        weight = layer.scaled_spline_weight
        y = base + F.linear(torch.flatten(basis, 1), torch.flatten(weight, 1))
        return y.reshape(*x.shape[:-1], layer.out_features)
