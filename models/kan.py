"""Kolmogorov–Arnold layers: every edge carries a learnable B-spline (Liu et al., 2024).

`KANLinear` and `KAN` keep the parameter names, shapes and semantics of efficient-kan, so its state
dicts load as they are. `KANFeedForward` is the block that replaces a transformer's MLP.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from . import kan_grid, splines
from .engine.blocks import no_autocast
from .engine.definition import Weights, kan_features
from .engine.memory import cached_table
from .engine.operators import (
    COMPILE_ELEMENTS,
    MODE_VARIABLE,
    check_mode,
    compile_without_gradients,
    group_kan_linear,
    kan_linear,
)
from .kan_grid import check_writable
from .plain import plain

__all__ = [
    "BASE_ACTIVATIONS", "COMPILE_ELEMENTS", "INITS", "KAN", "MODE_VARIABLE", "Activation",
    "GroupKANLinear", "KANFeedForward", "KANLinear", "Weights", "activation_name", "check_mode",
    "compile_without_gradients", "gain", "group_kan_linear", "kan_features", "kan_linear",
]  # fmt: skip

Activation = Callable[[], Callable[[Tensor], Tensor]]  # makes an activation, as nn.SiLU does
INITS = ("variance", "efficient-kan")

# Base activations that the engine computes, by their names there; others are computed beside it.
BASE_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
_NAMES: dict[object, str] = {kind: name for name, kind in BASE_ACTIVATIONS.items()}


def activation_name(activation: object) -> str | None:
    """Name in BASE_ACTIVATIONS of a module, or None for any other and for functions."""
    if isinstance(activation, nn.GELU) and activation.approximate != "none":
        return None
    return _NAMES.get(type(activation))


def gain(activation: Callable[[Tensor], Tensor]) -> float:
    """Root mean square of activation(z) for z ~ N(0, 1), by Gauss–Hermite quadrature.

    Weights of standard deviation 1 / (gain · √in) keep the variance of a standard normal input;
    for ReLU this is He et al. (2015).
    """
    points, weights = np.polynomial.hermite_e.hermegauss(64)
    with torch.no_grad():
        z = torch.tensor(points, dtype=torch.get_default_dtype(), device="cpu")
        values = activation(z).double()
    return math.sqrt(float((values.square() * torch.from_numpy(weights / weights.sum())).sum()))


class KANLinear(nn.Module):
    """A dense layer with a learnable function on each edge.

    y = base_weight · b(x) + Σ_j (spline_scaler ⊙ spline_weight)_j · B_j(x) (+ bias)

    with b a fixed activation and B_j the B-splines of the feature's grid. Outside the grid the
    spline tapers to zero over `spline_order` knots and the base goes on.

    At initialization an N(0, 1) input gives an output of variance about scale_base² (for any base
    activation, see `gain`), plus a small random spline. `init="efficient-kan"` draws parameters as
    that project does instead, for comparisons: its `kaiming_uniform_(a=√5 · scale)` makes them
    smaller for a larger scale.

    Args:
        in_features, out_features: sizes of the last dimension of input and output.
        grid_size: intervals in the grid.
        spline_order: degree of the splines, 0 to 5 are tested.
        scale_noise: size of the random spline at the start.
        scale_base: factor on the base weights at the start.
        scale_spline: factor on the spline's scale at the start.
        enable_standalone_scale_spline: a scale per edge, `spline_scaler`.
        base_activation: makes b, a module class or any callable without arguments.
        grid_eps: share of the equally spaced grid in `update_grid`; the rest follows the samples.
        grid_range: both ends of the grid. Behind a LayerNorm inputs are about N(0, 1), and a third
            of them lie outside the default (-1, 1), which is meant for functions on that interval.
        bias: adds a learnable constant per output.
        mode: how to compute it, "compiled", "eager" or "plain", or "auto", see `kan_linear`; all
            give the same to rounding. The attribute may be changed at any time.
        init: one of INITS.
        generator: draws the initial parameters; None for torch's global one.

    Shapes: (..., in_features) -> (..., out_features).

    Knots stay in float32 when the module is cast to 16 bits.

    Raises:
        ValueError: a size that is not positive, a grid range that is empty, or an unknown mode or
            init.
    """

    grid: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        enable_standalone_scale_spline: bool = True,
        base_activation: Activation = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Sequence[float] = (-1, 1),
        bias: bool = False,
        mode: str = "auto",
        init: str = "variance",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        in_features, out_features = plain((in_features, out_features))
        grid_size, spline_order = plain((grid_size, spline_order))
        sizes = {"in_features": in_features, "out_features": out_features}
        low, high = _checked_range(sizes, grid_size, spline_order, grid_range)
        check_mode(mode)
        if init not in INITS:
            raise ValueError(f"init must be one of {INITS}, not {init!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.grid_size = grid_size
        self.spline_order = spline_order
        self.scale_noise = scale_noise
        self.scale_base = scale_base
        self.scale_spline = scale_spline
        self.enable_standalone_scale_spline = enable_standalone_scale_spline
        self.base_activation = base_activation()
        self.mode = mode
        self.init = init
        self.grid_eps = grid_eps

        self.grid_range = low, high
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        knots = torch.empty(in_features, grid_size + 2 * spline_order + 1, dtype=dtype)
        self.register_buffer("grid", knots)
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(
            torch.empty(out_features, in_features, grid_size + spline_order)
        )
        if enable_standalone_scale_spline:
            self.spline_scaler = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws fresh parameters, on a uniform grid; a larger scale gives larger weights."""
        knots = splines.uniform_knots(*self.grid_range, self.grid_size, self.spline_order)
        self.grid.copy_(knots.expand_as(self.grid))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.init == "efficient-kan":
            self._reset_as_efficient_kan(generator)
            return
        fan = 1 / math.sqrt(self.in_features)
        bound = math.sqrt(3)  # of a uniform variable with variance 1
        base = self.scale_base * fan / gain(self.base_activation)
        nn.init.uniform_(self.base_weight, -base * bound, base * bound, generator)
        noise = self.scale_noise / (2 * self.grid_size)
        if self.enable_standalone_scale_spline:
            scaler = self.scale_spline * fan
            nn.init.uniform_(self.spline_scaler, -scaler * bound, scaler * bound, generator)
        else:
            noise *= self.scale_spline * fan
        nn.init.uniform_(self.spline_weight, -noise, noise, generator)

    @torch.no_grad()
    def _reset_as_efficient_kan(self, generator: torch.Generator | None) -> None:
        if self.grid.is_meta:
            return  # there is nothing to fit
        a = math.sqrt(5)
        nn.init.kaiming_uniform_(self.base_weight, a * self.scale_base, generator=generator)
        points = self.grid[:, self.spline_order : self.grid_size + self.spline_order + 1].T
        shape = *points.shape, self.out_features
        noise = torch.rand(shape, generator=generator, dtype=points.dtype) - 0.5
        curves = self.curve2coeff(points, noise * (self.scale_noise / self.grid_size))
        if self.enable_standalone_scale_spline:
            nn.init.kaiming_uniform_(self.spline_scaler, a * self.scale_spline, generator=generator)
        else:
            curves = curves * self.scale_spline
        self.spline_weight.copy_(curves)

    @property
    def scaled_spline_weight(self) -> Tensor:
        """Effective coefficients, spline_weight times spline_scaler, (out, in, G + k)."""
        if self.enable_standalone_scale_spline:
            return self.spline_weight * self.spline_scaler.unsqueeze(-1)
        return self.spline_weight

    def b_splines(self, x: Tensor) -> Tensor:
        """Values of the basis, (..., in) -> (..., in, G + k), at least in float32."""
        return splines.b_spline_basis(x, self.grid, self.spline_order)

    def curve2coeff(self, x: Tensor, y: Tensor) -> Tensor:
        """Least-squares coefficients of curves given by samples.

        Args:
            x: (..., in) sample points.
            y: (..., in, out) values of each edge's curve at them.

        Returns:
            (out, in, G + k), in the dtype of the weights.

        Raises:
            ValueError: shapes that do not fit, no samples, or values that are not finite.
        """
        if y.shape != (*x.shape, self.out_features):
            raise ValueError(f"y has shape {tuple(y.shape)} for x of shape {tuple(x.shape)}")
        samples = kan_grid.finite_samples(x, self.in_features)
        if not y.isfinite().all():
            raise ValueError("curves to be fitted must be finite")
        y = y.detach().reshape(len(samples), self.in_features, self.out_features).cpu()
        coefficients = splines.fit_coefficients(samples, y, self.grid.cpu(), self.spline_order)
        return coefficients.to(self.spline_weight)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the last dimension is {x.shape[-1]}, not {self.in_features}")
        activation = activation_name(self.base_activation)
        weights = Weights(
            None if activation is None else self.base_weight,
            self.spline_weight,
            self.spline_scaler if self.enable_standalone_scale_spline else None,
        )
        y = kan_linear(x, self.grid, self.spline_order, activation, weights, self.mode)
        if activation is None:  # one that the engine does not know
            base = self.base_activation(x).to(y.dtype)
            y = y + F.linear(base, self.base_weight.to(y.dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def spline_inputs(self, x: Tensor) -> Tensor:
        """The inputs of each grid's splines, (..., in) -> (N, in)."""
        return x.reshape(-1, self.in_features)

    def update_grid(
        self, x: Tensor, margin: float = 0.01, optimizer: Optimizer | None = None
    ) -> Tensor:
        """Moves the knots to where the samples (..., in) are, and keeps the functions.

        See `kan_grid.update_grid`, and the other changes of a grid there.
        """
        return kan_grid.update_grid(self, x, self.grid_eps, margin, optimizer)

    def edge_deviations(self, x: Tensor) -> Tensor:
        """Standard deviation of every edge's output over samples, base and spline, (out, in).

        From the covariance of the features of each input, C_i, as √(wᵀ C_i w): no tensor of
        (samples, in, out) is needed. Differentiable.

        Args:
            x: (..., in), at least two samples.
        """
        x = x.reshape(-1, self.in_features).to(self.grid.dtype)
        weight = torch.cat([self.base_weight[..., None], self.scaled_spline_weight], dim=-1)
        weight = weight.to(x.dtype)
        with no_autocast(x):
            values = kan_features(x, self.grid, self.spline_order, None)  # (N, n, in)
            values = torch.cat([self.base_activation(x.clone())[:, None], values], dim=1)
            values = (values - values.mean(dim=0)).permute(2, 1, 0)  # (in, n + 1, N)
            covariance = values @ values.mT / (len(x) - 1)
            variance = torch.einsum("oim,imn,oin->oi", weight, covariance, weight)
        return variance.clamp_min(1e-24).sqrt()  # a root of zero has no derivative

    def activation_regularization_loss(
        self, x: Tensor, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """pykan's regularizer: L1 and entropy of the edges' outputs over samples, a scalar.

        pykan 0.2.8's `reg("edge_forward_spline_n", …)`: an edge's size is the standard deviation
        of its output over that of its input; the entropies are those of each output's and of each
        input's edges.

        Args:
            x: (..., in) samples of the layer's input.
        """
        spread = x.reshape(-1, self.in_features).to(self.grid.dtype).std(dim=0)
        size = self.edge_deviations(x) / (spread + 0.1)  # (out, in)

        def entropy(dim: int) -> Tensor:
            share = size / (size.sum(dim=dim, keepdim=True) + 1)
            return -(share * (share + 1e-4).log2()).sum(dim=dim).mean()

        return regularize_activation * size.sum() + regularize_entropy * (entropy(0) + entropy(1))

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """L1 and entropy of the edges' mean absolute coefficients, scaler included; a scalar.

        The stand-in for pykan's activation-based form that needs no activations (efficient-kan),
        finite also where edges are exactly zero.
        """
        weight = self.scaled_spline_weight
        size = weight.to(splines.basis_dtype(weight, weight)).abs().mean(-1)  # (out, in)
        total = size.sum()
        share = size / total.clamp_min(1e-12)
        entropy = -(share * share.clamp_min(1e-30).log()).sum()
        return regularize_activation * total + regularize_entropy * entropy

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, grid_size={self.grid_size},"
            f" spline_order={self.spline_order}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KANLinear":
        grid = self.grid
        super()._apply(fn, recurse)
        _keep_knots(self, grid)
        return self


class GroupKANLinear(nn.Module):
    """A dense layer behind learnable functions that groups of input channels share.

    y = weight · φ(x) + bias,  φ(x_c) = b(x_c) + Σ_j spline_weight[g, j] · B_j(x_c)

    for channel c of group g, with b a fixed activation. It has hardly more parameters and
    operations than nn.Linear, and starts as `nn.Linear` behind b, with splines that are zero: a
    pretrained layer becomes one of these by its weight and bias alone.

    The shape is that of KAT's group-rational layers (Yang and Wang, 2025), with B-splines.

    Args:
        in_features, out_features: sizes of the last dimension of input and output.
        groups: number of splines; the channels are divided into as many equal, contiguous groups.
        grid_size, spline_order, base_activation, grid_range, bias, mode, generator: as in
            `KANLinear`.

    Shapes: (..., in_features) -> (..., out_features).

    Outside the grid the splines taper to zero and the base goes on. Knots stay in float32 when the
    module is cast to 16 bits.

    Raises:
        ValueError: a size that is not positive, in_features that do not divide into the groups, a
            grid range that is empty, or an unknown mode.
    """

    grid: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int = 8,
        grid_size: int = 8,
        spline_order: int = 3,
        base_activation: Activation = nn.Identity,
        grid_range: Sequence[float] = (-4, 4),
        bias: bool = True,
        mode: str = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        in_features, out_features, groups = plain((in_features, out_features, groups))
        grid_size, spline_order = plain((grid_size, spline_order))
        sizes = {"in_features": in_features, "out_features": out_features, "groups": groups}
        low, high = _checked_range(sizes, grid_size, spline_order, grid_range)
        check_mode(mode)
        if in_features % groups:
            raise ValueError(f"{in_features} channels do not divide into {groups} equal groups")
        self.in_features = in_features
        self.out_features = out_features
        self.groups = groups
        self.grid_size = grid_size
        self.spline_order = spline_order
        self.base_activation = base_activation()
        self.mode = mode
        self.grid_range = low, high
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer(
            "grid", torch.empty(groups, grid_size + 2 * spline_order + 1, dtype=dtype)
        )
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.spline_weight = nn.Parameter(torch.empty(groups, grid_size + spline_order))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws weight and bias as nn.Linear does; the splines are zero, on a uniform grid."""
        knots = splines.uniform_knots(*self.grid_range, self.grid_size, self.spline_order)
        self.grid.copy_(knots.expand_as(self.grid))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound, generator)
        nn.init.zeros_(self.spline_weight)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the last dimension is {x.shape[-1]}, not {self.in_features}")
        activation = activation_name(self.base_activation)
        pieces = cached_table(splines.polynomial_pieces, self.grid, self.spline_order)
        # no matrix product, which would be in autocast's type
        pieces = (pieces * self.spline_weight.to(pieces.dtype)[:, None, None]).sum(-1)
        y = group_kan_linear(x, self.grid, pieces, activation, self.weight, self.bias, self.mode)
        if activation is None:  # one that the engine does not know
            base = self.base_activation(x).to(y.dtype)
            y = y + F.linear(base, self.weight.to(y.dtype))
        return y

    def spline_inputs(self, x: Tensor) -> Tensor:
        """What each spline is evaluated at, (..., in) -> (N, groups)."""
        return x.reshape(-1, self.groups, self.in_features // self.groups).mT.reshape(
            -1, self.groups
        )

    def update_grid(
        self, x: Tensor, margin: float = 0.01, optimizer: Optimizer | None = None
    ) -> Tensor:
        """Moves each group's knots to where its samples are; see `kan_grid.update_grid`."""
        return kan_grid.update_grid(self, x, margin=margin, optimizer=optimizer)

    def regularization_loss(self) -> Tensor:
        """Mean absolute coefficient of each spline, summed, a scalar."""
        weight = self.spline_weight
        return weight.to(splines.basis_dtype(weight, weight)).abs().mean(-1).sum()

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, groups={self.groups},"
            f" grid_size={self.grid_size}, spline_order={self.spline_order},"
            f" bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GroupKANLinear":
        grid = self.grid
        super()._apply(fn, recurse)
        _keep_knots(self, grid)
        return self


def _checked_range(
    sizes: dict[str, int], grid_size: int, spline_order: int, grid_range: Sequence[float]
) -> tuple[float, float]:
    """Both ends of a layer's grid; a ValueError if it or the sizes make no layer."""
    sizes = {**sizes, "grid_size": grid_size}
    if min(sizes.values()) < 1 or spline_order < 0:
        raise ValueError(
            f"{', '.join(sizes)} must be at least 1 and spline_order at least 0, not"
            f" {', '.join(map(str, sizes.values()))} and {spline_order}"
        )
    low, high = plain(grid_range)
    if not low < high:
        raise ValueError(f"grid_range must be (low, high) with low < high, not {grid_range}")
    return low, high


def _keep_knots(layer: KANLinear | GroupKANLinear, knots: Tensor) -> None:
    """Undoes a cast of the layer's knots to 16 bits, to which they are never rounded."""
    if layer.grid.dtype.itemsize < 4:
        layer.grid = knots.to(layer.grid.device, torch.float32)


class KAN(nn.Module):
    """KANLinear layers in a row, with efficient-kan's interface and state dict (`layers.N.*`).

    Args:
        layers_hidden: widths from input to output.
        the rest: as in `KANLinear`, the same for all layers.

    Shapes: (..., layers_hidden[0]) -> (..., layers_hidden[-1]).
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        base_activation: Activation = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Sequence[float] = (-1, 1),
        mode: str = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(layers_hidden) < 2:
            raise ValueError(f"layers_hidden needs at least two widths, not {list(layers_hidden)}")
        self.grid_size = plain(grid_size)
        self.spline_order = plain(spline_order)
        self.layers = nn.ModuleList(
            KANLinear(
                in_features,
                out_features,
                grid_size=grid_size,
                spline_order=spline_order,
                scale_noise=scale_noise,
                scale_base=scale_base,
                scale_spline=scale_spline,
                base_activation=base_activation,
                grid_eps=grid_eps,
                grid_range=grid_range,
                mode=mode,
                generator=generator,
            )
            for in_features, out_features in pairwise(layers_hidden)
        )

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        """Runs the layers; with `update_grid`, first fits each one's grid to its input.

        An update that cannot be done is a ValueError, see `kan_grid.update_grid`; the layers
        before that one have their new grids then.
        """
        if update_grid:
            check_writable(*self.layers, names=kan_grid.CHANGED)
        for layer in self.layers:
            assert isinstance(layer, KANLinear)
            if update_grid:
                layer.update_grid(x)
            x = layer(x)
        return x

    def regularization_loss(
        self, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """Sum of the layers' `KANLinear.regularization_loss`, a scalar."""
        losses = [
            layer.regularization_loss(regularize_activation, regularize_entropy)
            for layer in self.layers
            if isinstance(layer, KANLinear)
        ]
        return torch.stack(losses).sum()

    def activation_regularization_loss(
        self, x: Tensor, regularize_activation: float = 1.0, regularize_entropy: float = 1.0
    ) -> Tensor:
        """Sum of the layers' `KANLinear.activation_regularization_loss` on their inputs."""
        losses = []
        for layer in self.layers:
            assert isinstance(layer, KANLinear)
            losses.append(
                layer.activation_regularization_loss(x, regularize_activation, regularize_entropy)
            )
            x = layer(x)
        return torch.stack(losses).sum()


class KANFeedForward(nn.Module):
    """Two KAN layers instead of a transformer's MLP (or its head).

    The input is expected behind a LayerNorm, about N(0, 1), and `grid_range` spans it. Between the
    two layers stands another LayerNorm, so that the second layer's inputs stay on its grid too.
    Measured on digits (KANsformer-Micro, 30 epochs, four blocks): at the end 0 to 1 % of those
    inputs lie outside the grid; 1 to 2 % without the norm; and 12 to 19 % with a grid calibrated
    on the first batch instead, since training moves the inputs away from it. The validation loss
    did not tell the three apart (0.18, 0.16, 0.19; one seed).

    Without the norm, with biases and with the identity and GELU as bases, the block is an MLP as
    long as its splines are zero: so a pretrained MLP becomes a KAN block.

    Args:
        in_features, hidden_features, out_features: widths; out_features defaults to in_features.
        groups: None for `KANLinear`, a spline on every edge; a number for `GroupKANLinear`, a
            spline for each group of channels.
        norm: the LayerNorm between the layers.
        output_scale: factor on the second layer's weights at the start.
        base_activation: of both layers, or a pair, one for each.
        init: one of INITS; "efficient-kan", of `KANLinear` alone, leaves out `output_scale`.
        the rest: as in `KANLinear`, for both layers.

    Shapes: (..., in_features) -> (..., out_features).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        groups: int | None = None,
        norm: bool = True,
        output_scale: float = 1.0,
        grid_size: int = 5,
        spline_order: int = 3,
        grid_range: Sequence[float] = (-3, 3),
        base_activation: Activation | tuple[Activation, Activation] = nn.SiLU,
        bias: bool = False,
        drop: float = 0.0,
        init: str = "variance",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        pair = base_activation if isinstance(base_activation, tuple) else (base_activation,) * 2

        def layer(
            width_in: int, width_out: int, activation: Activation, scale: float
        ) -> KANLinear | GroupKANLinear:
            options: dict[str, Any] = {
                "grid_size": grid_size,
                "spline_order": spline_order,
                "grid_range": grid_range,
                "base_activation": activation,
                "bias": bias,
                "generator": generator,
            }
            if groups is None and init != "variance":
                return KANLinear(width_in, width_out, init=init, **options)
            if groups is None:
                options |= {"scale_base": scale, "scale_spline": scale}
                return KANLinear(width_in, width_out, **options)
            made = GroupKANLinear(width_in, width_out, groups, **options)
            made.weight.data *= scale
            return made

        self.fc1 = layer(in_features, hidden_features, pair[0], 1.0)
        self.norm = nn.LayerNorm(hidden_features, eps=1e-6) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.fc2 = layer(hidden_features, out_features or in_features, pair[1], output_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.norm(self.fc1(x)))))
