"""Plots of an evaluation and of the training history, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kansformer.evaluate.calibration import Reliability
from kansformer.figures import (
    BLACK,
    THEMES,
    WHITE,
    new_figure,
    shortened,
    shortened_names,
    style_axis,
)
from kansformer.words import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 15  # most classes with counts in the cells of the confusion matrix
NAMED, NAMED_NARROW = 50, 25  # most classes with names along its sides
CELLS = 100  # most cells per side; with more classes, neighbors share a cell
NAME_INCHES = 1.5  # longer names are shortened
BARS = 25  # most classes with bars: those with the lowest F1
DPI = 120


def draw_confusion(
    confusion: np.ndarray, class_names: Sequence[str], theme: str = "light", narrow: bool = False
) -> Figure:
    """The confusion matrix, each row normalized to its class.

    Args:
        confusion: (classes, classes) counts; rows are true classes.
        narrow: as wide as the other plots of a page, with names for fewer classes.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    look = THEMES[theme]
    classes = len(class_names)
    named = classes <= (NAMED_NARROW if narrow else NAMED)
    side = 4.4 if narrow else min(4 + 0.22 * classes, 11 if named else 7)
    figure = new_figure(look, side + (0.4 if narrow else 1), side, DPI)
    axes = figure.subplots()
    style_axis(axes, look)
    shares, together = pooled_shares(confusion)
    end = together * len(shares) - 0.5
    # cividis is safe for the color-blind; the square root makes rare mistakes visible
    image = axes.imshow(
        shares, cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="none",
        extent=(-0.5, end, end, -0.5),
    )  # fmt: skip
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, fraction=0.05, pad=0.02, aspect=25)
    pooling = f",\nmaximum of {together} × {together} classes" if together > 1 else ""
    bar.set_label(f"share of the true class{pooling}", color=look.ink, fontsize=9)
    bar.ax.tick_params(colors=look.muted, labelsize=8)
    bar.outline.set_visible(False)
    axes.tick_params(length=0 if named else 3)
    if named:
        size = (7.5 if narrow else 9) if classes <= 25 else 6.5
        inches = NAME_INCHES * (0.7 if narrow else 1)
        short = shortened_names(class_names, inches, size)
        axes.set_xticks(range(classes), short, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(classes), short, fontsize=size, parse_math=False)
        axes.tick_params(labelcolor=look.ink)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
    if classes <= NUMBERED:
        _write_counts(axes, confusion, shares, 0.6 * side / classes)
    unit = "" if named else " (index)"
    axes.set_xlabel(f"predicted class{unit}", fontsize=9.5)
    axes.set_ylabel(f"true class{unit}", fontsize=9.5)
    axes.spines[:].set_visible(False)
    return figure


def pooled_shares(confusion: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows as shares of their class, (cells, cells), and the number of classes per side of a cell.

    With more than `CELLS` classes, a cell is the maximum over several neighboring classes, so that
    a single mistake among 1,000 classes does not vanish.

    Args:
        confusion: (classes, classes) counts; rows are true classes.
    """
    support = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, support, out=np.zeros(confusion.shape), where=support > 0)
    together = -(-len(shares) // CELLS)
    fill = -len(shares) % together
    blocks = np.pad(shares, (0, fill)).reshape(
        (len(shares) + fill) // together, together, -1, together
    )
    return blocks.max(axis=(1, 3)), together


def _write_counts(axes: Any, confusion: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """Writes the counts into the cells, `cell` inches wide, if they are legible at that size."""
    size = min(8.0, 72 * 0.85 * cell / (0.64 * len(f"{confusion.max()}")))
    if size < 4:
        return
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            color = BLACK if shares[row, column] > 0.25 else WHITE
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=size)


def draw_reliability(curve: Reliability, title: str, theme: str = "light") -> Figure:
    """Accuracy by confidence, and the number of predictions at each confidence."""
    look = THEMES[theme]
    figure = new_figure(look, 4.6, 5, DPI)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for part in (axes, counts):
        style_axis(part, look)
        part.grid(color=look.histogram, lw=0.6)
    axes.plot([0, 1], [0, 1], "--", color=look.muted, lw=1, label="perfectly calibrated")
    axes.plot(curve.confidence, curve.accuracy, "o-", color=look.function, ms=5, label="this model")
    axes.set(ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    title = shortened(title, 4, 10)
    axes.set_title(title, fontsize=10, color=look.ink, parse_math=False)
    axes.legend(frameon=False, loc="best", fontsize=9, labelcolor=look.ink)
    counts.vlines(curve.confidence, 0.5, curve.count, color=look.function, lw=6)
    counts.set(xlabel="confidence (probability of the predicted class)", ylabel="pictures")
    counts.set_yscale("log")
    counts.tick_params(which="minor", length=0)
    counts.set_ylim(0.5, 2 * curve.count.max())
    return figure


def draw_classes(per_class: Sequence[dict[str, Any]], theme: str = "light") -> Figure:
    """Precision and recall of each class, the lowest F1 on top.

    Args:
        per_class: the rows of `report.figures()["per_class"]`, at least one with an F1.
    """
    look = THEMES[theme]
    rows = lowest_f1(per_class, BARS)
    figure = new_figure(look, 4.8, 1.1 + 0.3 * len(rows), DPI)
    axis = figure.subplots()
    style_axis(axis, look)
    positions = np.arange(len(rows))
    for name, shift, color, hatch in (
        ("recall", -0.19, look.function, ""), ("precision", 0.19, look.base, "////"),
    ):  # fmt: skip
        values = [100 * (row[name] or 0) for row in rows]
        bars = axis.barh(
            positions + shift, values, 0.34, label=name, color=color, hatch=hatch,
            edgecolor=look.paper, lw=0,
        )  # fmt: skip
        labels = ["–" if row[name] is None else f"{100 * row[name]:.0f}" for row in rows]
        axis.bar_label(bars, labels, padding=2, fontsize=7, color=look.ink)
    short = shortened_names([row["class"] for row in rows], NAME_INCHES, 8.5)
    axis.set_yticks(positions, short, fontsize=8.5, parse_math=False)
    axis.tick_params(axis="y", labelcolor=look.ink, length=0)
    axis.set_xlim(0, 108)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("%", fontsize=9)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=look.ink)
    return figure


def lowest_f1(per_class: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The `count` classes with the lowest F1, the lowest first, of those with a defined F1."""
    occur = [row for row in per_class if row["f1"] is not None]
    return sorted(occur, key=lambda row: row["f1"])[:count]


def draw_history(history: Sequence[dict[str, Any]], best: int, theme: str = "light") -> Figure:
    """Loss, validation accuracy and learning rate per epoch, from rows of metrics.jsonl.

    `best` is the epoch whose weights were kept.
    """
    from matplotlib.ticker import MaxNLocator

    look = THEMES[theme]
    epochs = [row["epoch"] for row in history]
    best_accuracy = next(row["val_acc1"] for row in history if row["epoch"] == best)
    figure = new_figure(look, 4.8, 5.4, DPI)
    # a fixed layout: the layout engine would take as long as drawing, or as a short training run
    figure.set_layout_engine("none")
    margins = {"left": 0.18, "right": 0.97, "bottom": 0.09, "top": 0.98, "hspace": 0.17}
    loss, accuracy, rate = figure.subplots(
        3, 1, sharex=True, height_ratios=(3, 3, 1.3), gridspec_kw=margins
    )
    figure.align_ylabels()
    for axis in (loss, accuracy, rate):
        style_axis(axis, look)
        axis.grid(color=look.histogram, lw=0.6)

    def line(axis: Any, key: str, **style: Any) -> None:
        axis.plot(epochs, [row[key] for row in history], ms=3.5, lw=1.6, **style)

    line(loss, "train_loss", ls="--", marker="o", color=look.base, label="training")
    line(loss, "val_loss", ls="-", marker="s", color=look.function, label="validation")
    loss.set_ylabel("loss (nats)")
    loss.legend(frameon=False, fontsize=9, labelcolor=look.ink)
    line(accuracy, "val_acc1", ls="-", marker="s", color=look.function)
    accuracy.set_ylabel("val. accuracy (%)")
    accuracy.plot(best, best_accuracy, "o", ms=11, mfc="none", mec=look.ink)
    accuracy.set_title(
        f"best: {best_accuracy:.2f} % in epoch {best}", fontsize=9.5, color=look.ink, loc="left"
    )
    # a line with a single point would be invisible
    line(rate, "lr", ls="-", color=look.muted, marker="o" if len(epochs) == 1 else None)
    rate.set(xlabel="epoch", ylabel="learning\nrate")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(epochs) == 1:
        rate.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-4, 4))
    rate.set_ylim(bottom=0)
    return figure


def confusion_in_words(figures: dict[str, Any]) -> str:
    """Alternative text of `draw_confusion`, from the result of `report.figures`."""
    pairs = "; ".join(
        f"true {pair['true']}, predicted {pair['predicted']}: {pair['count']}"
        for pair in figures["most_confused"][:5]
    )
    return (
        f"Confusion matrix of {number(len(figures['per_class']), 'class')},"
        f" {100 * figures['accuracy']:.2f} % on the diagonal. "
        + (f"Most confused: {pairs}." if pairs else "No class is confused with another.")
    )


def classes_in_words(figures: dict[str, Any]) -> str:
    """Alternative text of `draw_classes`, from the result of `report.figures`."""
    rows = "; ".join(
        f"{row['class']}: recall {_percent(row['recall'])}, precision {_percent(row['precision'])}"
        for row in lowest_f1(figures["per_class"], BARS)
    )
    return f"Bars of recall and precision, the weakest class first. {rows}."


def reliability_in_words(curve: Reliability) -> str:
    """Alternative text of `draw_reliability`."""
    points = "; ".join(
        f"confidence {confidence:.2f}: accuracy {accuracy:.2f} of {count}"
        for confidence, accuracy, count in zip(
            curve.confidence, curve.accuracy, curve.count.tolist(), strict=True
        )
    )
    return f"Accuracy by confidence, with the diagonal of perfect calibration. {points}."


def history_in_words(history: Sequence[dict[str, Any]]) -> str:
    """Alternative text of `draw_history`."""
    first, last = history[0], history[-1]
    return (
        f"Curves over {number(last['epoch'], 'epoch')}: training loss from"
        f" {first['train_loss']:.3f} to {last['train_loss']:.3f}, validation loss from"
        f" {first['val_loss']:.3f} to {last['val_loss']:.3f}, validation accuracy from"
        f" {first['val_acc1']:.2f} to {last['val_acc1']:.2f} %; the learning rate below."
    )


def _percent(share: float | None) -> str:
    return "undefined" if share is None else f"{100 * share:.1f} %"
