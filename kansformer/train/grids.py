"""A KAN's own schedule: grids calibrated before training, moved and refined between epochs."""

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
COVERAGE = 0.999  # share of these pictures' activations that a calibrated grid spans


def first_pictures(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Up to PICTURES pictures (B, C, S, S) for a fit of grids."""
    found: list[Tensor] = []
    for images, _ in batches:
        found.append(images.to(device))
        if sum(map(len, found)) >= PICTURES:
            break
    return torch.cat(found)[:PICTURES]


def calibrate(model: VisionTransformer, images: Tensor) -> None:
    """Spans every grid over what reaches its layer.

    Args:
        images: (B, C, S, S), on the model's device.

    Raises:
        UserError: a layer's inputs are all the same.
    """
    fit_to_pictures(
        model, images, lambda layer, x: calibrate_grid(layer, x, COVERAGE), "--calibrate-grid"
    )


def grid_changes(config: TrainConfig, epoch: int) -> tuple[bool, int | None]:
    """What is due before an epoch, counted from 0: whether grids move, and their new size."""
    every, until = config.update_grid_every, config.update_grid_until
    moves = bool(every) and 0 < epoch <= until and epoch % every == 0
    return moves, dict(config.refine_grid or ()).get(epoch)


def change_grids(
    config: TrainConfig,
    epoch: int,
    model: VisionTransformer,
    averaged: VisionTransformer | None,
    optimiser: Optimizer,
    images: Tensor,
) -> str:
    """Makes the changes that are due before an epoch; says which, or nothing.

    Functions stay as they were as far as the new knots allow; the optimiser forgets its moments of
    splines that have changed. A moving average of the model is put on the same knots.

    Args:
        images: (B, C, S, S), on the model's device.
    """
    moves, size = grid_changes(config, epoch)
    if not (moves or size):
        return ""
    done = []
    if moves:
        fit_to_pictures(
            model, images, lambda layer, x: update_grid(layer, x, optimizer=optimiser),
            "--update-grid-every",
        )  # fmt: skip
        done.append("moved to where the activations are")
    if size:
        for layer in spline_layers(model).values():
            refine_grid(layer, size, optimizer=optimiser)
        model.config = replace(model.config, grid_size=size, grid_sizes=None)
        done.append(f"refined to {number(size, 'interval')}")
    if averaged is not None:
        own = spline_layers(model)
        for name, layer in spline_layers(averaged).items():
            change_grid(layer, own[name].grid)
        averaged.config = model.config
    return " and ".join(done)


def fit_to_pictures(
    model: VisionTransformer, images: Tensor, fit: Callable[[Any, Tensor], object], flag: str
) -> None:
    """`fit_grids` on pictures (B, C, S, S).

    Args:
        flag: which asks for it.

    Raises:
        UserError: the grid of a layer cannot be fitted.
    """
    try:
        fit_grids(model, images, fit)
    except ValueError as error:
        raise UserError(
            f"{flag}: {number(len(images), 'picture')} cannot fit the model's grids ({error});"
            f" add pictures, or leave out {flag}"
        ) from None
