"""Small KANs for functions and tables: residual, deep, sparse, modular, checkpointed.

All are stacks of `KANLinear`, take (..., inputs) with any leading dimensions, and name their base
activation, or None for splines alone. None of them knows the range of its data: give a `grid_range`
that spans it, or call `kan_grid.fit_grids(model, x)` once before training.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .engine.definition import Weights
from .engine.operators import kan_linear
from .kan import BASE_ACTIVATIONS, KAN, KANLinear, activation_name
from .kan_grid import check_writable
from .plain import plain

AFTER_NORM = (-3.0, 3.0)  # spans the N(0, 1) behind a LayerNorm
ROUNDING = 100  # an input is constant if its range is below this many roundings of its maximum


def kan_layer(
    in_features: int,
    out_features: int,
    *,
    base_activation: str | None = "silu",
    kind: type[KANLinear] = KANLinear,
    **options: Any,
) -> KANLinear:
    """A `KANLinear` whose base activation has a name.

    Args:
        base_activation: a name in BASE_ACTIVATIONS, or None for splines alone: the base weights
            are zeros then and are not trained.
        kind: the class of the layer.
        options: further arguments of `KANLinear`.

    Raises:
        ValueError: an unknown activation, or what `KANLinear` refuses.
    """
    layer = kind(in_features, out_features, base_activation=_activation(base_activation), **options)
    if base_activation is None:
        _leave_splines_alone(layer)
    return layer


class Dropout(nn.Dropout):
    """`nn.Dropout` whose masks a generator draws; None for torch's global one.

    From the same state, both draw the same masks.
    """

    def __init__(self, p: float, generator: torch.Generator | None = None) -> None:
        super().__init__(p)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if self.generator is None or not self.training or self.p == 0:
            return super().forward(x)
        kept = 1 - self.p
        return x * torch.empty_like(x).bernoulli_(kept, generator=self.generator).div_(kept)


class ResidualKAN(nn.Module):
    """KAN layers with gated skips: x -> skip(x) + gate · layer(x), one gate per layer.

    A skip is the identity, or a linear map without bias where the width changes. With all gates at
    zero the network is its skips alone; from zero, as in ReZero (Bachlechner et al., 2021), the
    layers get their first gradient in the second step.

    Args:
        layers_hidden: widths from input to output.
        gate: every gate at the start.
        generator: draws the initial parameters; None for torch's global one.
        options: as in `kan_layer`, the same for all layers.

    Shapes: (..., layers_hidden[0]) -> (..., layers_hidden[-1]).
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        *,
        gate: float = 0.1,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        layers_hidden = _checked_widths(layers_hidden)
        if not math.isfinite(gate):
            raise ValueError(f"gate must be a finite number, not {gate}")
        pairs = list(pairwise(layers_hidden))
        self.layers = nn.ModuleList(
            kan_layer(*pair, generator=generator, **options) for pair in pairs
        )
        self.skips = nn.ModuleList(
            nn.Identity() if width == out else _linear(width, out, generator)
            for width, out in pairs
        )
        self.gates = nn.Parameter(torch.full((len(pairs),), float(gate)))

    def forward(self, x: Tensor) -> Tensor:
        for layer, skip, gate in zip(self.layers, self.skips, self.gates, strict=True):
            x = skip(x) + gate * layer(x)
        return x


class DeepKAN(nn.Module):
    """KAN layers with LayerNorm and dropout between them, which keep many layers trainable.

    The norm puts every hidden value on the next layer's grid, which spans ±3 there.

    Args:
        layers_hidden: widths from input to output.
        dropout: share of hidden values set to zero in training, in [0, 1).
        norm: LayerNorm between the layers; without it `grid_range` holds for all layers.
        generator: draws the initial parameters and dropout's masks; None for torch's global one.
        options: as in `kan_layer`; `grid_range` is the first layer's.

    Shapes: (..., layers_hidden[0]) -> (..., layers_hidden[-1]).

    Raises:
        ValueError: also for hidden widths below 3 with a norm, which leaves of one value nothing
            and of two a sign.
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        *,
        dropout: float = 0.0,
        norm: bool = True,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        layers_hidden = _checked_widths(layers_hidden)
        hidden, dropout = layers_hidden[1:-1], plain(dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        if norm and hidden and min(hidden) < 3:
            raise ValueError(
                f"hidden widths must be at least 3 for their LayerNorm, not {list(hidden)};"
                " widen them or leave it out with norm=False"
            )
        options["generator"] = generator
        later = {**options, "grid_range": AFTER_NORM} if norm else options
        self.layers = nn.ModuleList(
            kan_layer(*pair, **(later if number else options))
            for number, pair in enumerate(pairwise(layers_hidden))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(n) if norm else nn.Identity() for n in hidden)
        self.dropout = Dropout(dropout, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for norm, layer in zip(self.norms, self.layers[1:], strict=True):
            x = layer(self.dropout(norm(x)))
        return x


class MaskedKANLinear(KANLinear):
    """A `KANLinear` with edges that can be removed; `mask` (out, in) is 0 where one is.

    Only for base activations in BASE_ACTIVATIONS.
    """

    mask: Tensor

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(in_features, out_features, bias=True, **options)
        self.register_buffer("mask", torch.ones(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the last dimension is {x.shape[-1]}, not {self.in_features}")
        scaler = self.spline_scaler if self.enable_standalone_scale_spline else None
        weights = Weights(
            self.base_weight * self.mask, self.spline_weight * self.mask[..., None], scaler
        )
        activation = activation_name(self.base_activation)
        y = kan_linear(x, self.grid, self.spline_order, activation, weights, self.mode)
        assert self.bias is not None
        return y + self.bias.to(y.dtype)


class SparseKAN(nn.Module):
    """A KAN that says which edges it needs, and can drop the others.

    An edge's strength is the standard deviation of its output over samples. It is idle if that is
    at most `threshold` times the strength of the strongest edge of its layer.

    Args:
        layers_hidden: widths from input to output.
        threshold: see above, in [0, 1).
        options: as in `kan_layer`, the same for all layers, but `bias`: all of them have one.

    Shapes: (..., layers_hidden[0]) -> (..., layers_hidden[-1]).
    """

    def __init__(
        self, layers_hidden: Sequence[int], *, threshold: float = 0.01, **options: Any
    ) -> None:
        super().__init__()
        layers_hidden = _checked_widths(layers_hidden)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), not {threshold}")
        self.threshold = threshold
        self.layers = nn.ModuleList(
            kan_layer(*pair, kind=MaskedKANLinear, **options) for pair in pairwise(layers_hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def group_penalty(self) -> Tensor:
        """Sum of the sizes of all edges' weights, to be added to a loss; a scalar.

        Edges go to zero as a whole under it: the group lasso (Yuan and Lin, 2006), on the base
        weight and the root mean square of the effective coefficients.
        """
        sizes = []
        for layer in self._masked_layers():
            square = layer.base_weight.square() + layer.scaled_spline_weight.square().mean(dim=-1)
            sizes.append((square * layer.mask + 1e-12).sqrt().sum())  # a root of 0 has no slope
        return torch.stack(sizes).sum()

    @torch.no_grad()
    def edge_strengths(self, x: Tensor) -> list[Tensor]:
        """Per layer, the standard deviation of each edge's output over samples, (out, in).

        Args:
            x: (..., inputs), at least two samples.

        Raises:
            ValueError: fewer than two samples.
        """
        if x.shape[:-1].numel() < 2:
            raise ValueError("the strength of an edge takes at least two samples")
        strengths = []
        for layer in self._masked_layers():
            strength = layer.edge_deviations(x) * layer.mask
            moving = _varies(x.reshape(-1, x.shape[-1])) & (strength > 1e-12)
            strengths.append(torch.where(moving, strength, 0))  # it is never quite 0
            x = layer(x)
        return strengths

    def idle_edges(self, x: Tensor) -> list[Tensor]:
        """Per layer, which edges are idle on the samples x (..., inputs); bool (out, in)."""
        return [s <= self.threshold * s.max() for s in self.edge_strengths(x)]

    def sparsity(self, x: Tensor) -> float:
        """Share of all edges that are idle on the samples x (..., inputs)."""
        idle = torch.cat([edges.flatten() for edges in self.idle_edges(x)])
        return float(idle.double().mean())

    def importance(self, x: Tensor) -> Tensor:
        """How much of the outputs' variation comes from each input, (inputs,), summing to 1.

        Each node's variance is divided among its incoming edges, layer by layer; all outputs have
        equal weight. This is exact for one layer and independent inputs. An input without effect
        has 0; if no input has an effect, all are 0.

        Args:
            x: (..., inputs), at least two samples.
        """
        share = None
        for strength in reversed(self.edge_strengths(x)):
            variance = strength.square()
            parts = variance / variance.sum(dim=1, keepdim=True).clamp_min(1e-30)  # (out, in)
            share = parts.mean(dim=0) if share is None else share @ parts
        assert share is not None
        return share / share.sum().clamp_min(1e-30)

    @torch.no_grad()
    def pruned(self, x: Tensor) -> "SparseKAN":
        """A copy without the edges that are idle on the samples x (..., inputs).

        Their mean output goes into the bias. The edges stay removed in further training.

        Raises:
            ValueError: weights are computed from other tensors, see `check_writable`.
        """
        check_writable(self)
        new = copy.deepcopy(self)
        for layer, idle in zip(new._masked_layers(), self.idle_edges(x), strict=True):
            before = layer(x).reshape(-1, layer.out_features)
            new_mask = layer.mask * ~idle
            layer.base_weight.mul_(new_mask)
            layer.spline_weight.mul_(new_mask[..., None])
            layer.mask.copy_(new_mask)
            assert layer.bias is not None
            lost = before - layer(x).reshape(-1, layer.out_features)
            layer.bias.add_(lost.mean(dim=0))
            x = layer(x)
        return new

    def _masked_layers(self) -> list[MaskedKANLinear]:
        return [layer for layer in self.layers if isinstance(layer, MaskedKANLinear)]


class ModularKAN(nn.Module):
    """Named KANs, each on some of the named inputs, whose outputs are summed.

    The output of each module can be examined (`contributions`), and an input influences only the
    modules that name it.

    Args:
        input_names: of the columns of the input, in order.
        modules: the inputs of each module, by the module's name. An input may be in several
            modules, but none may be in no module.
        out_features: width of the output.
        hidden: hidden widths of each module.
        options: as in `kan_layer`, the same for all layers.

    Shapes: (..., len(input_names)) -> (..., out_features).
    """

    def __init__(
        self,
        input_names: Sequence[str],
        modules: Mapping[str, Sequence[str]],
        *,
        out_features: int = 1,
        hidden: Sequence[int] = (5,),
        **options: Any,
    ) -> None:
        super().__init__()
        _check_modules(input_names, modules)
        self.input_names = tuple(input_names)
        self.columns = {
            name: [self.input_names.index(i) for i in inputs] for name, inputs in modules.items()
        }
        self.parts = nn.ModuleDict()
        for name, inputs in modules.items():
            widths = _checked_widths((len(inputs), *hidden, out_features))
            layers = (kan_layer(*pair, **options) for pair in pairwise(widths))
            self.parts[name] = nn.Sequential(*layers)

    def contributions(self, x: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Output of each module by name, (..., out_features) each; `forward` is their sum.

        Args:
            x: (..., inputs), or a tensor (...) for each input by name.

        Raises:
            ValueError: another number of columns, or other names.
        """
        if isinstance(x, Mapping):
            if set(x) != set(self.input_names):
                raise ValueError(f"inputs are {sorted(self.input_names)}, not {sorted(x)}")
            x = torch.stack([x[name] for name in self.input_names], dim=-1)
        if x.shape[-1] != len(self.input_names):
            raise ValueError(f"the last dimension is {x.shape[-1]}, not {len(self.input_names)}")
        return {name: part(x[..., self.columns[name]]) for name, part in self.parts.items()}

    def forward(self, x: Tensor | Mapping[str, Tensor]) -> Tensor:
        return torch.stack(list(self.contributions(x).values())).sum(dim=0)


class CheckpointedKAN(KAN):
    """A `KAN` that keeps only the input of every n-th layer for the backward pass.

    What lies between is computed again there, for memory that does not grow with every layer
    (Chen et al., 2016). Values, gradients and the state dict are those of `KAN`.

    Args:
        layers_hidden: widths from input to output.
        every: layers per segment.
        base_activation: as in `kan_layer`.
        options: further arguments of `KAN`.

    Shapes: (..., layers_hidden[0]) -> (..., layers_hidden[-1]).
    """

    def __init__(
        self,
        layers_hidden: Sequence[int],
        *,
        every: int = 2,
        base_activation: str | None = "silu",
        **options: Any,
    ) -> None:
        layers_hidden = _checked_widths(layers_hidden)
        every = plain(every)
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of at least 1, not {every!r}")
        super().__init__(layers_hidden, base_activation=_activation(base_activation), **options)
        self.every = every
        if base_activation is None:
            for layer in self.layers:
                _leave_splines_alone(layer)

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        if update_grid or not torch.is_grad_enabled():
            return super().forward(x, update_grid)
        for start in range(0, len(self.layers), self.every):
            segment = nn.Sequential(*self.layers[start : start + self.every])
            x = checkpoint(segment, x, use_reentrant=False)
        return x


def _activation(name: str | None) -> type[nn.Module]:
    if name is not None and name not in BASE_ACTIVATIONS:
        known = ", ".join(BASE_ACTIVATIONS)
        raise ValueError(f"base_activation must be {known} or None, not {name!r}")
    return BASE_ACTIVATIONS[name or "identity"]


def _varies(x: Tensor) -> Tensor:
    """Whether each column of (N, inputs) holds more than one value, to rounding."""
    low, high = x.aminmax(dim=0)
    return high - low > ROUNDING * torch.finfo(x.dtype).eps * torch.maximum(high.abs(), low.abs())


def _linear(width: int, out: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear map without bias, with the initial weights of nn.Linear."""
    layer = torch.nn.utils.skip_init(nn.Linear, width, out, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    return layer


def _leave_splines_alone(layer: nn.Module) -> None:
    """Sets a layer's base weights to zero and excludes them from training."""
    assert isinstance(layer, KANLinear)
    nn.init.zeros_(layer.base_weight.requires_grad_(False))


def _checked_widths(layers_hidden: Sequence[int]) -> list[int]:
    widths: list[int] = plain(list(layers_hidden))
    if len(widths) < 2:
        raise ValueError(f"layers_hidden needs at least two widths, not {widths}")
    if not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(f"widths must be whole numbers of at least 1, not {widths}")
    return widths


def _check_modules(input_names: Sequence[str], modules: Mapping[str, Sequence[str]]) -> None:
    """Raises the ValueErrors of `ModularKAN`."""
    if not modules:
        raise ValueError("a ModularKAN needs at least one module")
    if len(set(input_names)) < len(input_names):
        raise ValueError(f"input_names must differ from each other: {list(input_names)}")
    for name, inputs in modules.items():
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise ValueError(f"a module cannot be named {name!r}; use a word that is free")
        if isinstance(inputs, str) or not inputs or len(set(inputs)) < len(inputs):
            raise ValueError(f"module {name!r} needs names of inputs, each once, not {inputs!r}")
        for unknown in set(inputs) - set(input_names):
            raise ValueError(f"module {name!r} asks for {unknown!r}, which is no input")
    unused = set(input_names) - {name for inputs in modules.values() for name in inputs}
    if unused:
        raise ValueError(f"inputs that no module uses: {', '.join(sorted(unused))}")
