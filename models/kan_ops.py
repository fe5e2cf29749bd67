"""The product at the heart of a KAN layer: basis values of every input times coefficients.

Written as an autograd function that keeps only its input: the basis values, n times as large, are
computed again in the backward pass, block by block, in buffers that stay in the processor's cache.
"""

from typing import Any

import torch
from torch import Tensor

from models.splines import b_spline_basis

BLOCK_ELEMENTS = 800_000  # of one buffer; measured best on a 2-core CPU between 0.2 and 2 million


def spline_linear(x: Tensor, knots: Tensor, order: int, weight: Tensor) -> Tensor:
    """Σ_i Σ_j weight[o, i, j] · B_j(x_i), the B-splines of degree `order` on each feature's knots.

    The basis is computed in float32 or better, also under autocast; only the matrix product runs
    in autocast's type.

    Shapes: x (..., in), knots (in, M), weight (out, in, M - order - 1) -> (..., out).
    """
    flat = x.reshape(-1, x.shape[-1])
    return _SplineLinear.apply(flat, knots, order, weight).reshape(*x.shape[:-1], len(weight))


class _Basis:
    """Basis values and slopes of blocks of rows, in buffers that are used again for each block.

    The Cox-de Boor recursion over all functions at once; a block is (rows, functions, in).
    """

    def __init__(self, rows: int, knots: Tensor, order: int) -> None:
        self.order = order
        self.knots = knots.T.contiguous()  # (M, in)
        M, width = self.knots.shape
        # equal knots make the recursion's 0 / 0, which counts as 0
        gaps = [self.knots[d:] - self.knots[:-d] for d in range(1, order + 1)]
        self.inverse = [torch.where(gap > 0, 1 / gap, 0.0) for gap in gaps]
        # intervals are half open but for the last, which holds its end
        after = torch.nextafter(self.knots, torch.full_like(self.knots, torch.inf))
        self.starts = torch.where(self.knots == self.knots[-1], after, self.knots)
        self.distance = knots.new_empty(rows, M, width)  # of x from each knot
        self.shares = knots.new_empty(rows, M, width)
        self.values = knots.new_empty(rows * (M - 1) * width)  # flat: each degree has one fewer

    def compute(self, x: Tensor) -> Tensor:
        """Values of the basis at x (rows, in), (rows, n, in); valid until the next call."""
        rows, M, width = len(x), *self.knots.shape
        distance = torch.sub(x[:, None], self.knots, out=self.distance[:rows])
        reached = torch.ge(x[:, None], self.starts, out=self.shares[:rows])

        def values(count: int) -> Tensor:
            return self.values[: rows * count * width].view(rows, count, width)

        torch.sub(reached[:, :-1], reached[:, 1:], out=values(M - 1))
        for degree, inverse in enumerate(self.inverse, start=1):
            count = M - degree
            shares = torch.mul(values(count), inverse, out=self.shares[:rows, :count])
            raised = torch.mul(distance[:, : count - 1], shares[:, :-1], out=values(count - 1))
            raised.addcmul_(distance[:, degree + 1 :], shares[:, 1:], value=-1)
        return values(M - self.order - 1)

    def slopes(self, rows: int) -> Tensor:
        """Derivatives in x, (rows, n, in), of the values computed last, which they replace."""
        count = len(self.knots) - self.order - 1
        width = self.knots.shape[1]
        slopes = self.values[: rows * count * width].view(rows, count, width)
        if self.order == 0:
            return slopes.zero_()
        shares = self.shares[:rows, : count + 1]
        return torch.sub(shares[:, :-1], shares[:, 1:], out=slopes).mul_(self.order)


class _SplineLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, knots: Tensor, order: int, weight: Tensor) -> Tensor:
        device = x.device.type
        ctx.product_type = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        )
        ctx.order = order
        ctx.save_for_backward(x, knots, weight)
        with torch.autocast(device, enabled=False):
            packed = _packed(weight, ctx.product_type)
            y = packed.new_empty(len(x), len(weight))
            for rows, basis in _blocks(x, knots, order):
                values = basis.compute(x[rows]).flatten(1).to(packed.dtype)
                torch.mm(values, packed.T, out=y[rows])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor]:
        x, knots, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            y = _plain(x, knots, ctx.order, weight)
            grad_x, grad_weight = torch.autograd.grad(
                y, (x, weight), grad, create_graph=True, materialize_grads=True
            )
            return grad_x, None, None, grad_weight
        with torch.autocast(x.device.type, enabled=False):
            packed = _packed(weight, ctx.product_type)
            grad = grad.to(packed.dtype)
            grad_x = torch.empty_like(x)
            grad_packed = packed.new_zeros(packed.shape, dtype=weight.dtype)
            for rows, basis in _blocks(x, knots, ctx.order):
                values = basis.compute(x[rows]).flatten(1).to(packed.dtype)
                grad_packed += grad[rows].T @ values
                slopes = basis.slopes(len(values))
                grad_values = (grad[rows] @ packed).view(slopes.shape).to(slopes.dtype)
                grad_x[rows] = grad_values.mul_(slopes).sum(dim=1)
        out, width, count = weight.shape
        return grad_x, None, None, grad_packed.view(out, count, width).transpose(1, 2)


def _plain(x: Tensor, knots: Tensor, order: int, weight: Tensor) -> Tensor:
    """The same product in operations that autograd knows."""
    return b_spline_basis(x, knots, order).flatten(1).to(weight.dtype) @ weight.flatten(1).T


def _packed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(out, in, n) to (out, n · in), the order in which the basis is laid out."""
    return weight.transpose(1, 2).flatten(1).to(dtype)


def _blocks(x: Tensor, knots: Tensor, order: int) -> Any:
    """Slices of x's rows, each with the basis to compute them in."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, knots.dtype), torch.float32)
    size = min(max(1, BLOCK_ELEMENTS // knots.numel()), max(1, len(x)))
    basis = _Basis(size, knots.to(dtype), order)
    for start in range(0, len(x), size):
        yield slice(start, start + size), basis
