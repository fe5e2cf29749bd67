"""Spline grids in training: calibrated before it, updated and refined between epochs."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kansformer.errors import UserError
from kansformer.train.config import TrainConfig
from kansformer.words import number
from models.kan_grid import (
    calibrate_grid,
    change_grid,
    fit_grids,
    refine_grid,
    spline_layers,
    update_grid,
)
from models.vit_model import VisionTransformer

PICTURES = 256  # to which grids are fitted
COVERAGE = 0.999  # share of these pictures' activations within a calibrated grid


def first_pictures(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Up to PICTURES pictures (B, C, S, S) on the device, for fitting grids."""
    taken: list[Tensor] = []
    for images, _ in batches:
        taken.append(images.to(device))
        if sum(map(len, taken)) >= PICTURES:
            break
    return torch.cat(taken)[:PICTURES]


def calibrate(model: VisionTransformer, images: Tensor) -> None:
    """Makes every layer's grid span the layer's inputs.

    Args:
        images: (B, C, S, S), on the model's device.

    Raises:
        UserError: a layer's inputs are all equal.
    """
    fit_to_pictures(
        model, images, lambda layer, x: calibrate_grid(layer, x, COVERAGE), "--calibrate-grid"
    )


def grid_changes(config: TrainConfig, epoch: int) -> tuple[bool, int | None]:
    """What is due before an epoch, counted from 0: whether grids are updated, and their new size.

    The size is None where they are not refined.
    """
    every, until = config.update_grid_every, config.update_grid_until
    update = bool(every) and 0 < epoch <= until and epoch % every == 0
    return update, dict(config.refine_grid or ()).get(epoch)


def change_grids(
    config: TrainConfig,
    epoch: int,
    model: VisionTransformer,
    ema_model: VisionTransformer | None,
    optimizer: Optimizer,
    images: Tensor,
) -> str:
    """Makes the grid changes that are due before an epoch.

    Functions are preserved as far as the new knots allow. The optimizer's moments of the changed
    splines are reset.

    Args:
        ema_model: the moving average of the model, which gets the same grids.
        images: (B, C, S, S), on the model's device.

    Returns:
        What was done in words, empty if nothing was due.
    """
    update, size = grid_changes(config, epoch)
    if not (update or size):
        return ""
    done = []
    if update:
        fit_to_pictures(
            model, images, lambda layer, x: update_grid(layer, x, optimizer=optimizer),
            "--update-grid-every",
        )  # fmt: skip
        done.append("updated to the activations")
    if size:
        for layer in spline_layers(model).values():
            refine_grid(layer, size, optimizer=optimizer)
        model.config = replace(model.config, grid_size=size, grid_sizes=None)
        done.append(f"refined to {number(size, 'interval')}")
    if ema_model is not None:
        layers = spline_layers(model)
        for name, layer in spline_layers(ema_model).items():
            change_grid(layer, layers[name].grid)
        ema_model.config = model.config
    return " and ".join(done)


def fit_to_pictures(
    model: VisionTransformer, images: Tensor, fit: Callable[[Any, Tensor], object], flag: str
) -> None:
    """Fits every layer's grid to the layer's inputs on pictures (B, C, S, S), see `fit_grids`.

    Args:
        fit: called with each layer and that layer's input.
        flag: the one that asks for this, for the error message.

    Raises:
        UserError: the grid of some layer cannot be fitted.
    """
    try:
        fit_grids(model, images, fit)
    except ValueError as error:
        raise UserError(
            f"{flag}: {number(len(images), 'picture')} cannot fit the model's grids ({error});"
            f" add pictures, or leave out {flag}"
        ) from None
