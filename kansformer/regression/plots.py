"""Pictures of a fit: history, predictions, and what each input does. Each returns a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 4  # panels side by side
GREY = "0.75"


def draw_history(history: Sequence[Mapping[str, float]], best_epoch: int | None) -> Figure:
    """Loss by epoch, from the history of a `KANTrainer`."""
    figure, axes = _figure(6, 3.6)
    epochs = [row["epoch"] for row in history]
    axes.plot(epochs, [row["train_loss"] for row in history], lw=1.5, label="training")
    if "val_loss" in history[-1]:
        axes.plot(epochs, [row["val_loss"] for row in history], lw=1.5, label="validation")
        if best_epoch is not None:
            axes.axvline(best_epoch, color=GREY, ls="--", lw=1, zorder=0)
            axes.set_title(f"kept: epoch {best_epoch}", fontsize=10)
    if min(row["train_loss"] for row in history) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False)
    return figure


def draw_predictions(truth: np.ndarray, prediction: np.ndarray, name: str, title: str) -> Figure:
    """Predicted against true values (N,) each, with the line where they are equal."""
    figure, axes = _figure(4.6, 4.4)
    ends = [min(truth.min(), prediction.min()), max(truth.max(), prediction.max())]
    axes.plot(ends, ends, color=GREY, lw=1, zorder=0)
    axes.scatter(truth, prediction, s=18, alpha=0.6, linewidths=0)
    axes.set(xlabel=f"{name}, true", ylabel=f"{name}, predicted")
    axes.set_title(title, fontsize=10)
    axes.set_box_aspect(1)
    return figure


def draw_confusion(counts: np.ndarray, classes: Sequence[Any], title: str) -> Figure:
    """How often each class (rows) was taken for which (columns), counts (classes, classes)."""
    side = min(max(3.6, 1.6 + 0.5 * len(classes)), 12)
    figure, axes = _figure(side + 0.4, side)
    axes.grid(visible=False)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "0.2"
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=9)
    names = [_short(str(label), 14) for label in classes]
    turn = 45 if max(map(len, names)) > 4 else 0
    side_of_tick = "right" if turn else "center"
    axes.set_xticks(range(len(names)), names, fontsize=9, rotation=turn, ha=side_of_tick)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10)
    return figure


def draw_effects(
    effects: Sequence[tuple[str, np.ndarray, np.ndarray, float]],
    axis: str,
    labels: Sequence[str] = (),
) -> Figure:
    """What each input does to the output while the others keep their values, averaged over them.

    Args:
        effects: per panel the input's name, places (P,), mean outputs (curves, P), and the input's
            importance.
        axis: name of the output.
        labels: names of the curves, if there are several.
    """
    columns = min(COLUMNS, len(effects))
    rows = -(-len(effects) // columns)
    figure = Figure(figsize=(2.5 * columns + 0.6, 2.1 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (name, places, curves, importance) in zip(grid.flat, effects, strict=False):
        for number, curve in enumerate(curves):
            axes.plot(places, curve, lw=1.8, color=f"C{number % 10}")
        axes.set_title(f"{_short(name, 20)}  ({round(importance, 2) + 0.0:.2f})", fontsize=9)
        axes.tick_params(labelsize=8)
        _clean(axes)
    for axes in grid.flat[len(effects) :]:
        axes.set_axis_off()
    figure.supylabel(axis, fontsize=10)
    if labels:
        figure.legend(
            [f"{label}" for label in labels], loc="outside lower center", frameon=False, fontsize=9,
            ncols=min(len(labels), 6),
        )  # fmt: skip
    return figure


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure (inches) with one plain panel."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _clean(axes)
    return figure, axes


def _clean(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
