"""Changing a layer's grid: adapt it to samples, refine it, calibrate it on a first batch.

Each change keeps the layer's functions as well as the new knots allow, is checked before anything
is written, and can be reported to an optimizer. A `spline_weight` that is computed from other
tensors (weight norm, pruning masks) is refused. Under torch.distributed every rank must make the
change, with its samples: all of them count, and the ranks end up equal. A model that is to be
sharded (FSDP) must be changed before.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import LBFGS, Optimizer

from . import splines
from .plain import plain

CHANGED = ("grid", "spline_weight")  # the tensors of a layer that a new grid changes

# The tensors of KAN layers and linear layers that are checked.
WEIGHTS = ("grid", "base_weight", "spline_weight", "spline_scaler", "weight", "bias", "affine")

# What undoes a hook that computes a weight, by the suffix that the hook adds to the weight's name.
REMOVALS = {"_mask": "prune.remove", "_u": "remove_spectral_norm", "_g": "remove_weight_norm"}


class SplineLayer(Protocol):
    """A layer with splines, as these functions know it.

    For type checkers only. `isinstance` does not see parameters, buffers and submodules of an
    `nn.Module` since Python 3.12; `spline_layers` finds the layers of a model.
    """

    in_features: int
    spline_order: int
    grid_size: int
    grid: Tensor  # (splines, grid_size + 2·spline_order + 1)
    spline_weight: nn.Parameter  # (..., splines, grid_size + spline_order)

    def spline_inputs(self, x: Tensor) -> Tensor:
        """The inputs of each grid's splines, (..., in_features) -> (N, splines)."""


def spline_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with splines in a model by their names, from first to last."""
    return {
        name: module for name, module in model.named_modules() if hasattr(module, "spline_inputs")
    }


def update_grid(
    layer: SplineLayer,
    x: Tensor,
    grid_eps: float = 0.02,
    margin: float = 0.01,
    optimizer: Optimizer | None = None,
) -> Tensor:
    """Moves the knots to where the samples are, and keeps the functions (see `change_grid`).

    A feature with fewer than grid_size + 1 distinct samples keeps its grid and its functions, and a
    warning counts such features.

    Args:
        x: (..., in) samples of the layer's input.
        grid_eps: share of an equally spaced grid; the rest follows the samples' quantiles.
        margin: by how much the equally spaced grid exceeds the range of the samples.
        optimizer: its state for `spline_weight` is dropped, since the coefficients then belong to
            other basis functions.

    Returns:
        (in,) bool, the features that were given a new grid.

    Raises:
        ValueError: samples that are not finite, or too few of them for every feature, or weights
            that cannot be written to; then nothing has changed.
    """
    samples = _samples(layer, x)
    knots = splines.adaptive_knots(samples, layer.grid_size, layer.spline_order, grid_eps, margin)
    distinct = 1 + (samples.sort(dim=0).values.diff(dim=0) > 0).sum(dim=0)  # (in,)
    return _move_where(layer, distinct > layer.grid_size, knots, samples, optimizer)


def calibrate_grid(
    layer: SplineLayer, x: Tensor, coverage: float = 0.99, optimizer: Optimizer | None = None
) -> Tensor:
    """Spans an equally spaced grid over the central share of the samples, as for a first batch.

    Args:
        coverage: that share, in (0, 1].
        the rest, and what is returned and raised: as in `update_grid`; a constant feature keeps
            its grid.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be in (0, 1], not {coverage}; nothing was changed")
    samples = _samples(layer, x)
    knots = splines.central_knots(samples, layer.grid_size, layer.spline_order, coverage)
    every = torch.ones(len(knots), dtype=torch.bool, device="cpu")
    return _move_where(layer, every, knots, samples, optimizer)


def refine_grid(
    layer: SplineLayer, grid_size: int, x: Tensor | None = None, optimizer: Optimizer | None = None
) -> None:
    """Divides the grid into more intervals and keeps the functions (see `change_grid`).

    They stay exactly as they are if `grid_size` is a multiple of the present one.

    Args:
        x, optimizer: as in `change_grid`.

    Raises:
        ValueError: a smaller size than the present one, samples that are not finite, or weights
            that cannot be written to; then nothing has changed.
    """
    grid_size = plain(grid_size)
    if grid_size < layer.grid_size:
        raise ValueError(
            f"grid_size {grid_size} is smaller than the present {layer.grid_size}; nothing was"
            " changed"
        )
    knots = splines.finer_knots(layer.grid, grid_size, layer.spline_order)
    change_grid(layer, knots, x, optimizer)


def change_grid(
    layer: SplineLayer,
    knots: Tensor,
    x: Tensor | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Puts a layer's splines on other knots, of any number, and keeps the functions.

    Where a feature's new knots contain its old ones, its functions stay as they are. Else they
    become the least-squares best on the samples, nearest to the old functions where the samples
    leave a choice. Factors on the coefficients (`spline_scaler`) stay as they are. Another number
    of knots replaces the data of `spline_weight`: wrap a model in DDP again afterwards.

    Args:
        knots: (in, grid_size + 2·spline_order + 1), increasing.
        x: (..., in) samples of the layer's input; without them the whole grid counts.
        optimizer: its state for `spline_weight` is dropped, since the coefficients then belong to
            other basis functions.

    Raises:
        ValueError: knots or samples that cannot be used, or weights that cannot be written to; then
            nothing has changed.
    """
    knots = knots.detach().to("cpu", layer.grid.dtype)
    width, least = len(layer.grid), 2 * layer.spline_order + 2
    if knots.ndim != 2 or len(knots) != width or knots.shape[1] < least:
        raise ValueError(
            f"knots must be of shape ({width}, {least} or more), not {tuple(knots.shape)}; nothing"
            " was changed"
        )
    if not (knots.isfinite().all() and (knots.diff(dim=1) > 0).all()):
        raise ValueError("knots must be finite and increasing; nothing was changed")
    samples = None if x is None else _samples(layer, x)
    _move(layer, knots, samples, optimizer)


@torch.no_grad()
def fit_grids(
    model: nn.Module, batch: Tensor, fit: Callable[[Any, Tensor], object] = calibrate_grid
) -> None:
    """Fits the grid of every KAN layer in a model to what reaches it, from first to last.

    Args:
        model: is run once in evaluation mode.
        batch: its input.
        fit: called with each layer and that layer's input.

    Raises:
        ValueError: the model has no KAN layer, or the grid of some layer cannot be fitted; then no
            layer has changed.
    """

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        fit(layer, inputs[0])

    layers = list(spline_layers(model).values())
    if not layers:
        raise ValueError(f"{type(model).__name__} has no KAN layer whose grid could be fitted")
    check_writable(*layers, names=CHANGED)
    before = [(layer.grid_size, copy.deepcopy(layer.state_dict())) for layer in layers]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(batch)
    except Exception:
        for layer, (grid_size, state) in zip(layers, before, strict=True):
            _resize(layer, grid_size)
            layer.load_state_dict(state)
        raise
    finally:
        for module, mode in training:
            module.training = mode
        for handle in handles:
            handle.remove()


def resize_grids(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resizes the grids of KAN layers to those in a state dict, so that it can be loaded.

    Raises:
        ValueError: weights are computed from other tensors; then nothing has changed.
    """
    layers = spline_layers(model)
    check_writable(*layers.values(), names=CHANGED)
    for name, layer in layers.items():
        weight = state[f"{name}.spline_weight" if name else "spline_weight"]
        _resize(layer, weight.shape[-1] - layer.spline_order)


def finite_samples(x: Tensor, width: int) -> Tensor:
    """x (..., in) as (N, in) on the CPU, where float64 is always available.

    Raises:
        ValueError: another width, no samples, or some that are not finite.
    """
    if x.shape[-1:] != (width,):
        raise ValueError(f"the last dimension of {tuple(x.shape)} is not {width}")
    x = x.detach().reshape(-1, width).cpu()
    if len(x) == 0 or not x.isfinite().all():
        raise ValueError("a fit needs samples, and finite ones; nothing was changed")
    return x


def _samples(layer: SplineLayer, x: Tensor) -> Tensor:
    """The checked inputs of a layer's splines, those of all ranks, (N, splines)."""
    if x.shape[-1:] != (layer.in_features,):
        raise ValueError(f"the last dimension of {tuple(x.shape)} is not {layer.in_features}")
    return finite_samples(_of_all_ranks(layer.spline_inputs(x)), len(layer.grid))


def _of_all_ranks(x: Tensor) -> Tensor:
    """The samples of all processes, in order of rank; x itself where there is only one."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, x.detach().reshape(-1, x.shape[-1]).cpu())
    return torch.cat(parts)


def _move_where(
    layer: SplineLayer,
    wanted: Tensor,
    knots: Tensor,
    samples: Tensor,
    optimizer: Optimizer | None,
) -> Tensor:
    """Moves the wanted features (in,) that can be moved, and returns which were."""
    grid = layer.grid.cpu()
    knots = knots.to(grid.dtype)
    moved = wanted & (knots.diff(dim=1) > 0).all(dim=1)
    kept = int((~moved).sum())
    if kept == len(grid):
        raise ValueError(
            "there are too few distinct samples of every feature for a grid of"
            f" {layer.grid_size} intervals; nothing was changed"
        )
    _move(layer, torch.where(moved[:, None], knots, grid), samples, optimizer)
    if kept:
        warnings.warn(
            f"{kept} of {len(grid)} features have too few distinct samples for a new grid and keep"
            " the one they have",
            stacklevel=4,
        )
    return moved


@torch.no_grad()
def _move(
    layer: SplineLayer, knots: Tensor, samples: Tensor | None, optimizer: Optimizer | None
) -> None:
    """Fits the functions to checked knots on the CPU, given the samples of all ranks."""
    check_writable(cast(nn.Module, layer), names=CHANGED)
    maps = splines.refit_matrix(layer.grid.cpu(), knots, layer.spline_order, samples)
    weight = torch.einsum("inm,...im->...in", maps, layer.spline_weight.cpu().double())
    if not weight.isfinite().all():
        raise ValueError("the fit to the new grid is not finite; nothing was changed")
    _resize(layer, knots.shape[1] - 2 * layer.spline_order - 1)
    layer.grid.copy_(knots)
    layer.spline_weight.copy_(weight)
    layer.spline_weight.grad = None  # of other functions
    if dist.is_available() and dist.is_initialized():
        for tensor in (layer.grid, layer.spline_weight.data):
            dist.broadcast(tensor, 0)
    if optimizer is not None:
        _forget_moments(optimizer, layer.spline_weight)


def _resize(layer: SplineLayer, grid_size: int) -> None:
    """Changes the number of intervals; knots and coefficients are undefined afterwards."""
    if grid_size == layer.grid_size:
        return
    layer.grid_size = grid_size
    count = grid_size + layer.spline_order
    layer.grid = layer.grid.new_empty(len(layer.grid), count + layer.spline_order + 1)
    # The parameter stays the one that an optimizer holds. By way of another dtype, since a loss
    # that is still alive keeps a node of autograd's that would go on expecting the old shape.
    weight = layer.spline_weight
    data = weight.data.new_empty(*weight.shape[:-1], count)
    weight.data = data.to(torch.float32 if data.dtype == torch.float64 else torch.float64)
    weight.data = data


def _forget_moments(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    """Drops an optimizer's state of a parameter, which starts afresh at its next step."""
    if isinstance(optimizer, LBFGS):  # has one memory for all its parameters
        optimizer.state.clear()
        optimizer._numel_cache = None
    else:
        optimizer.state.pop(parameter, None)


def check_writable(*modules: nn.Module, names: Iterable[str] = WEIGHTS) -> None:
    """Makes sure that these tensors of the modules and their submodules can be written to.

    Parametrizations, weight norm and pruning masks compute a weight from other tensors before each
    use, and a value written to it is lost.

    Raises:
        ValueError: a weight is computed; the message says what to call first.
    """
    for module in (part for whole in modules for part in whole.modules()):
        for name in names:
            remedy = _how_to_make_writable(module, name)
            if remedy:
                raise ValueError(
                    f"{name} of {type(module).__name__} is computed from other tensors, and a"
                    f" change of it would be lost; {remedy} first; nothing was changed"
                )


def _how_to_make_writable(module: nn.Module, name: str) -> str:
    """What makes a computed weight a parameter again; empty if it is not computed."""
    call = f"(layer, {name!r})"
    if parametrize.is_parametrized(module, name):
        return f"call torch.nn.utils.parametrize.remove_parametrizations{call}"
    if not isinstance(vars(module).get(name), Tensor):  # parameters and buffers are kept elsewhere
        return ""
    calls = (way for suffix, way in REMOVALS.items() if hasattr(module, name + suffix))
    return next((f"call torch.nn.utils.{way}{call}" for way in calls), "make it a parameter again")
