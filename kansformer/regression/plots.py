"""Plots of a fit: history, predictions, and the effects of the inputs. Each returns a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kansformer.figures import shortened, shortened_names

COLUMNS = 4  # panels side by side
NAMED = 40  # most classes with names along the sides of the confusion matrix
DPI = 110
GREY = "0.75"


def draw_history(history: Sequence[Mapping[str, float]], best_epoch: int | None) -> Figure:
    """Loss per epoch, from the history of a `KANTrainer`."""
    figure, axes = _figure(6, 3.6)
    epochs = [row["epoch"] for row in history]
    axes.plot(epochs, [row["train_loss"] for row in history], lw=1.5, label="training")
    if "val_loss" in history[-1]:
        axes.plot(epochs, [row["val_loss"] for row in history], lw=1.5, label="validation")
        if best_epoch is not None:
            axes.axvline(best_epoch, color=GREY, ls="--", lw=1, zorder=0)
            axes.set_title(f"best epoch: {best_epoch}", fontsize=10)
    if min(row["train_loss"] for row in history) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False)
    return figure


def draw_predictions(truth: np.ndarray, prediction: np.ndarray, name: str, title: str) -> Figure:
    """Predicted against true values, (N,) each, with the diagonal."""
    figure, axes = _figure(4.6, 4.4)
    ends = [min(truth.min(), prediction.min()), max(truth.max(), prediction.max())]
    axes.plot(ends, ends, color=GREY, lw=1, zorder=0)
    axes.scatter(truth, prediction, s=18, alpha=0.6, linewidths=0)
    name = shortened(name, 2.2, 10)
    axes.set_xlabel(f"{name}, true", parse_math=False)
    axes.set_ylabel(f"{name}, predicted", parse_math=False)
    axes.set_title(title, fontsize=10)
    axes.set_box_aspect(1)
    return figure


def draw_confusion(counts: np.ndarray, classes: Sequence[Any], title: str) -> Figure:
    """The confusion matrix (classes, classes): counts by true class (rows) and predicted class."""
    named = len(classes) <= NAMED
    side = min(max(3.6, 1.6 + 0.5 * len(classes)), 12 if named else 7)
    figure, axes = _figure(side + 0.4, side)
    axes.grid(visible=False)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.6 else "0.2"
            axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=9)
    if named:
        names = shortened_names([str(label) for label in classes], 1.1, 9)
        turn = 45 if max(map(len, names)) > 4 else 0
        style: dict[str, Any] = {"fontsize": 9, "parse_math": False}
        axes.set_xticks(
            range(len(names)), names, rotation=turn, ha="right" if turn else "center", **style
        )
        axes.set_yticks(range(len(names)), names, **style)
    else:
        for side_of in (axes.xaxis, axes.yaxis):
            side_of.set_major_locator(MaxNLocator(6, integer=True))
    unit = "" if named else " (index in sorted order)"
    axes.set(xlabel=f"predicted class{unit}", ylabel=f"true class{unit}")
    axes.set_title(title, fontsize=10)
    return figure


def draw_effects(
    effects: Sequence[tuple[str, np.ndarray, np.ndarray, float]],
    axis: str,
    labels: Sequence[str] = (),
) -> Figure:
    """Partial dependence: the mean output at each value of an input, others as in the data.

    Args:
        effects: per panel the input's name, its values (P,), mean outputs (curves, P), and its
            importance.
        axis: name of the output.
        labels: names of the curves, if there are several.
    """
    columns = min(COLUMNS, len(effects))
    rows = -(-len(effects) // columns)
    size = 2.5 * columns + 0.6, 2.1 * rows + 0.4
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (name, values, curves, importance) in zip(grid.flat, effects, strict=False):
        for number, curve in enumerate(curves):
            axes.plot(values, curve, lw=1.8, color=f"C{number % 10}")
        title = f"{shortened(name, 1.5, 9)}  ({round(importance, 2) + 0.0:.2f})"
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.tick_params(labelsize=8)
        _clean(axes)
    for axes in grid.flat[len(effects) :]:
        axes.set_axis_off()
    figure.supylabel(shortened(axis, 2.1 * rows, 10), fontsize=10, parse_math=False)
    if labels:
        names = shortened_names([str(label) for label in labels], 1.1, 9)
        legend = figure.legend(
            grid.flat[0].lines, names, loc="outside lower center", frameon=False, fontsize=9,
            ncols=min(len(labels), max(1, round(1.5 * columns))),
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size, inches, with one panel."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _clean(axes)
    return figure, axes


def _clean(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
