"""The weights of a KAN layer as one matrix, and gradients from it as autograd has them."""

from itertools import product

import pytest
import torch
from torch import Tensor

from models.engine.blocks import pack, unpack
from models.engine.definition import Weights

COUNT = 7


def formula(weights: Weights) -> Tensor:
    """The packed weights, in operations that autograd knows."""
    scaler = 1 if weights.scaler is None else weights.scaler[..., None]
    columns = list((weights.spline * scaler).unbind(-1))
    if weights.base is not None:
        columns.insert(0, weights.base)
    return torch.stack(columns, dim=1).flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("out", "width"), [(1, 1), (5, 7), (3, 40), (130, 96)])
def test_packed_and_back(out: int, width: int, dtype: torch.dtype) -> None:
    for has_base, has_scaler in product([True, False], repeat=2):
        weights = Weights(
            torch.randn(out, width, dtype=dtype, requires_grad=True) if has_base else None,
            torch.randn(out, width, COUNT, dtype=dtype, requires_grad=True),
            torch.randn(out, width, dtype=dtype, requires_grad=True) if has_scaler else None,
        )
        expected = formula(weights)
        grad = torch.randn_like(expected)
        gradients = torch.autograd.grad(expected, weights.present, grad)
        with torch.no_grad():
            torch.testing.assert_close(pack(weights, dtype), expected, rtol=0, atol=0)
            torch.testing.assert_close(unpack(grad, weights), list(gradients))
