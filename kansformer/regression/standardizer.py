"""Scaling of inputs and outputs, stored in the model, which then works in the data's units."""

import torch
from torch import Tensor, nn

METHODS = ("standard", "min-max")
ROUNDING = 100  # spreads below this many rounding errors of a column's largest value count as zero


class Standardizer(nn.Module):
    """Scales each column: "standard" to mean 0 and standard deviation 1, "min-max" to [-1, 1].

    A constant column becomes 0. Shift and scale of each column are buffers, saved with the model.

    Args:
        columns: number of columns.
        method: one of METHODS.

    Shapes: (..., columns) -> (..., columns).

    Raises:
        ValueError: an unknown method or no columns.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, columns: int, method: str = "standard") -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
        if columns < 1:
            raise ValueError(f"there must be at least one column, not {columns}")
        self.method = method
        self.register_buffer("shift", torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(columns, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, x: Tensor) -> "Standardizer":
        """Sets shift and scale from samples (N, columns), and returns itself.

        Raises:
            ValueError: another shape, no samples, or values that are not finite or too large to
                square.
        """
        columns = len(self.shift)
        if x.ndim != 2 or x.shape[1] != columns or len(x) == 0:
            raise ValueError(f"samples must be (N, {columns}), not {tuple(x.shape)}")
        if not x.isfinite().all():
            raise ValueError("samples must be finite")
        x = x.to(self.shift)
        if self.method == "standard":
            shift, scale = x.mean(dim=0), x.std(dim=0, correction=0)
        else:
            low, high = x.amin(dim=0), x.amax(dim=0)
            shift, scale = (low + high) / 2, (high - low) / 2
        if not (shift.isfinite().all() and scale.isfinite().all()):
            raise ValueError("samples are too large to compute their spread")
        least = ROUNDING * torch.finfo(x.dtype).eps * x.abs().amax(dim=0)
        self.shift.copy_(shift)
        self.scale.copy_(torch.where(scale > least, scale, 1))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Scales samples given in the data's units."""
        # in float64 before rounding to 32 bits, which a date in seconds would not survive
        return ((x.to(self.shift.dtype) - self.shift) / self.scale).to(x.dtype)

    def inverse(self, z: Tensor) -> Tensor:
        """Scales back to the data's units, (..., columns) -> (..., columns)."""
        return (z.to(self.shift.dtype) * self.scale + self.shift).to(z.dtype)

    def extra_repr(self) -> str:
        """The arguments in the module's printed form."""
        return f"{len(self.shift)}, method={self.method!r}"


class StandardizedModel(nn.Module):
    """A network with scaling of its inputs and, for regression, of its outputs.

    Args:
        inputs: scaling of the inputs.
        network: the network, which is trained on scaled values.
        outputs: scaling of the outputs; None leaves them unscaled.

    Shapes: (..., inputs) -> (..., outputs), both in the units of the data.
    """

    def __init__(
        self, inputs: Standardizer, network: nn.Module, outputs: Standardizer | None = None
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.network = network
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """Scales the inputs, applies the network, and scales its outputs back."""
        y = self.network(self.inputs(x))
        return y if self.outputs is None else self.outputs.inverse(y)
