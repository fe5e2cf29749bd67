"""Plots of what a trained ViT has learned, and their alternative texts.

Every `draw_*` function returns a matplotlib figure without a window, and has an `*_alt_text`
counterpart. Lines differ in dash pattern, not only in color.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kansformer.figures import (
    THEMES,
    Theme,
    new_figure,
    shortened_names,
    style_axis,
    text_width,
    wrapped,
)
from kansformer.interpret.block_scores import LayerFacts
from kansformer.interpret.edges import Curve
from kansformer.interpret.units import UnitUse
from kansformer.words import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
TITLE_SIZE = 8  # points, above pictures
MOST_CLASSES = 10  # most bars per unit: of more classes, those with the highest and lowest means


@dataclass(frozen=True)
class LayerCurves:
    """Functions of one layer, with a heading."""

    heading: str
    curves: Sequence[Curve]


def draw_functions(
    block: int, layers: Sequence[LayerCurves], theme: str = "light", columns: int = COLUMNS
) -> Figure:
    """The learned functions of a block, each over the histogram of its inputs."""
    look = THEMES[theme]
    rows = [-(-len(layer.curves) // columns) for layer in layers]
    legend_rows = -(-4 // columns)
    height = 0.53 + 0.22 * legend_rows + sum(0.35 + 1.62 * count for count in rows)
    figure = new_figure(look, 2.4 * columns, height)
    parts = figure.subfigures(len(layers), 1, height_ratios=rows, squeeze=False)[:, 0]
    for part, layer, count in zip(parts, layers, rows, strict=True):
        part.set_facecolor(look.paper)
        part.suptitle(
            layer.heading, x=0.012, ha="left", fontsize=10.5, color=look.ink, fontweight="bold"
        )
        low = min(float(curve.y.min()) for curve in layer.curves)
        high = max(float(curve.y.max()) for curve in layer.curves)
        pad = 0.08 * max(high - low, 1e-6)
        axes = part.subplots(count, columns, sharey=True, squeeze=False).flat
        for axis, curve in zip(axes, layer.curves, strict=False):
            _draw_curve(axis, curve, (low - pad, high + pad), look)
        for axis in axes[len(layer.curves) :]:
            axis.set_axis_off()
    _legend(figure, look, f"Block {block}", columns)
    return figure


def _draw_curve(axis: Any, curve: Curve, limits: tuple[float, float], look: Theme) -> None:
    style_axis(axis, look)
    low, high = limits
    left, right = float(curve.x[0]), float(curve.x[-1])
    for start, stop in ((left, curve.grid[0]), (curve.grid[1], right)):
        if stop > start:
            axis.axvspan(start, stop, color=look.outside, zorder=0, lw=0)
    for end in curve.grid:
        axis.axvline(end, color=look.muted, lw=0.7, ls=(0, (1, 2)), zorder=1)
    counts = curve.counts / curve.counts.max().clamp_min(1)
    axis.stairs(
        low + 0.85 * (high - low) * counts.numpy(), curve.bounds.numpy(), baseline=low, fill=True,
        color=look.histogram, zorder=0.5,
    )  # fmt: skip
    axis.axhline(0, color=look.muted, lw=0.5, zorder=1)
    axis.plot(curve.x, curve.y, color=look.function, lw=2.2, zorder=3)
    axis.plot(curve.x, curve.base, color=look.base, lw=1.3, ls=(0, (4, 2)), zorder=4)
    axis.set_xlim(left, right)
    axis.set_ylim(low, high)
    axis.set_title(curve.title, fontsize=9, color=look.ink, pad=3)


def _legend(figure: Figure, look: Theme, title: str, columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=look.function, lw=2.2, label="learned function"),
        Line2D([], [], color=look.base, lw=1.3, ls=(0, (4, 2)), label="base, without the spline"),
        Patch(color=look.histogram, label="inputs on real pictures"),
        Line2D([], [], color=look.muted, lw=0.7, ls=(0, (1, 2)), label="ends of the grid"),
    ]
    figure.legend(
        handles=handles, loc="outside upper right", ncols=columns, frameon=False, fontsize=8.5,
        labelcolor=look.ink, title=None, handlelength=2.2, columnspacing=1.4,
    )  # fmt: skip
    figure.text(0.012, 0.995, title, ha="left", va="top", fontsize=13, color=look.ink)


def functions_alt_text(block: int, layers: Sequence[LayerCurves]) -> str:
    """Alternative text of `draw_functions`."""
    sentences = [f"Learned functions of block {block}."]
    for layer in layers:
        described = "; ".join(
            f"{curve.title} {shape_in_words(curve)}, {_percent(curve.outside)} of its inputs"
            " outside the grid"
            for curve in layer.curves
        )
        sentences.append(f"{layer.heading}: {described}.")
    return " ".join(sentences)


def shape_in_words(curve: Curve) -> str:
    """The shape of a function over its inputs: "rises from -0.1 to 0.9", "falls, then rises"."""
    middle = (curve.bounds[:-1] + curve.bounds[1:]) / 2
    share = curve.counts.cumsum(0) / curve.counts.sum().clamp_min(1)
    used = middle[(share > 0.01) & (share < 0.99)]
    inside = (curve.x >= used[0]) & (curve.x <= used[-1]) if len(used) else curve.x == curve.x
    if not inside.any():  # nearly all inputs are equal
        inside = (curve.x - used[0]).abs() == (curve.x - used[0]).abs().min()
    y = curve.y[inside].numpy()
    span = float(y.max() - y.min())
    if span < 1e-6:
        return f"is {y[0]:.2g} throughout"
    decimals = max(1 - math.floor(math.log10(span)), 0)  # to a hundredth of the range
    turns = _turning_values(y, 0.05 * span)
    verbs = ["rises" if b > a else "falls" for a, b in pairwise(turns)]
    if len(verbs) == 1:
        return f"{verbs[0]} from {turns[0]:.{decimals}f} to {turns[1]:.{decimals}f}"
    low, high = min(turns), max(turns)
    return f"{', then '.join(verbs[:3])} between {low:.{decimals}f} and {high:.{decimals}f}"


def _turning_values(y: np.ndarray, least: float) -> list[float]:
    """First value, last value and the extremes between them, without swings below `least`."""
    slopes = np.sign(np.diff(y))
    extremes = np.flatnonzero(slopes[1:] * slopes[:-1] < 0) + 1
    values = [float(v) for v in (y[0], *y[extremes], y[-1])]
    while len(values) > 2:
        swings = np.abs(np.diff(values))
        i = int(swings.argmin())
        if swings[i] >= least:
            break
        if i == 0 or i == len(swings) - 1:
            del values[1 if i == 0 else -2]
        else:
            del values[i : i + 2]
    return values


@dataclass(frozen=True)
class UnitPictures:
    """A hidden unit, and the pictures that activate it most.

    Attributes:
        unit: its index.
        pictures: as the model sees them.
        boxes: (left, top, side) of the patch in each, pixels; None for a class token.
    """

    unit: int
    pictures: Sequence[Image.Image]
    boxes: Sequence[tuple[int, int, int] | None]


def draw_units(
    block: int,
    units: Sequence[UnitPictures],
    use: UnitUse,
    class_names: Sequence[str],
    theme: str = "light",
) -> Figure:
    """Each unit's mean activation per class, and the pictures and patches that activate it most."""
    look = THEMES[theme]
    rows = -(-len(units) // 2)
    figure = new_figure(look, 9.6, 0.5 + 2.0 * rows)
    at = "" if any(box for unit in units for box in unit.boxes) else " (class token)"
    figure.suptitle(
        f"Block {block}: mean activation per class and top pictures of the strongest units{at}",
        x=0.012, ha="left", fontsize=13, color=look.ink,
    )  # fmt: skip
    axes = figure.subplots(rows, 4, squeeze=False, width_ratios=(1, 1.7, 1, 1.7)).reshape(-1, 2)
    for bars, montage in axes[len(units) :]:
        bars.set_axis_off()
        montage.set_axis_off()
    for (bars, montage), unit in zip(axes, units, strict=False):
        style_axis(bars, look)
        shown = _shown_classes(use.class_means[:, unit.unit].numpy())
        means = use.class_means[shown, unit.unit].numpy()
        bars.barh(range(len(shown)), means, color=look.function, height=0.72)
        bars.axvline(0, color=look.muted, lw=0.7)
        bars.set_yticks(
            range(len(shown)), shortened_names([class_names[i] for i in shown], 0.8, 7), fontsize=7,
            parse_math=False,
        )  # fmt: skip
        bars.invert_yaxis()
        bars.set_title(f"unit {unit.unit}", fontsize=9, color=look.ink, pad=3)
        montage.set_axis_off()
        _draw_montage(montage, unit, look)
    return figure


def _draw_montage(axis: Any, unit: UnitPictures, look: Theme) -> None:
    """Pictures in two rows, each one data unit wide, with their patches outlined."""
    from matplotlib.patches import Rectangle

    columns = -(-len(unit.pictures) // 2)
    for index, (picture, box) in enumerate(zip(unit.pictures, unit.boxes, strict=True)):
        left, top = index % columns * 1.08, index // columns * 1.08
        pixels = np.asarray(picture.convert("RGB"))
        axis.imshow(pixels, interpolation="nearest", extent=(left, left + 1, top + 1, top))
        if box is not None:
            x, y, side = (value / picture.width for value in box)
            corner = left + x, top + y
            axis.add_patch(Rectangle(corner, side, side, fill=False, ec="white", lw=3.2))
            axis.add_patch(Rectangle(corner, side, side, fill=False, ec=look.base, lw=1.8))
    axis.set_xlim(0, 1.08 * columns)
    axis.set_ylim(2.1, 0)


def _shown_classes(means: np.ndarray) -> list[int]:
    """Classes with pictures; of many, those with the highest and the lowest means."""
    order = [i for i in range(len(means)) if np.isfinite(means[i])]
    if len(order) <= MOST_CLASSES:
        return order
    order.sort(key=lambda i: -means[i])
    return order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]


def units_alt_text(
    block: int, units: Sequence[UnitPictures], use: UnitUse, class_names: Sequence[str]
) -> str:
    """Alternative text of `draw_units`."""
    sentences = [f"Hidden units of block {block}: mean activation per class and the pictures that"
                 " activate each most."]  # fmt: skip
    for unit in units:
        means = use.class_means[:, unit.unit]
        order = means.nan_to_num(-np.inf).argsort(descending=True)
        low = means.nan_to_num(np.inf).argmin()
        sentences.append(
            f"Unit {unit.unit} is most active for {class_names[int(order[0])]}"
            f" ({float(means[order[0]]):.2g}) and least for {class_names[int(low)]}"
            f" ({float(means[low]):.2g})."
        )
    return " ".join(sentences)


def draw_overview(
    facts: Sequence[tuple[str, LayerFacts]], theme: str = "light", columns: int = 2
) -> Figure:
    """For every layer: the share of inputs outside its grid, and the contribution of its splines.

    Args:
        columns: number of columns for the two panels: 2, or 1 for narrow pages.
    """
    look = THEMES[theme]
    rows = 2 // columns
    figure = new_figure(look, 4.8 * columns, rows * (1.0 + 0.27 * len(facts)))
    panels = figure.subplots(rows, columns, sharey=True)
    values = [
        [100 * (layer.outside or 0) for _, layer in facts],
        [100 * layer.spline_energy for _, layer in facts],
    ]
    titles = "inputs outside the grid (%)", "splines' share of the output variance (%)"
    for axis, numbers, title in zip(panels, values, titles, strict=True):
        style_axis(axis, look)
        bars = axis.barh(range(len(facts)), numbers, color=look.function, height=0.65)
        axis.bar_label(bars, fmt="%.2g", padding=3, fontsize=8, color=look.ink)
        axis.set_title(title, fontsize=10, color=look.ink, loc="left")
        axis.set_xlim(0, 1.18 * max(numbers) or 1)
        axis.set_yticks(range(len(facts)), [name for name, _ in facts], fontsize=8)
    panels[0].invert_yaxis()
    return figure


def overview_alt_text(facts: Sequence[tuple[str, LayerFacts]]) -> str:
    """Alternative text of `draw_overview`."""
    return "Two bar charts with a bar per layer. " + "; ".join(
        f"{name}: {_percent(layer.outside or 0)} of the inputs outside the grid,"
        f" {_percent(layer.spline_energy)} of the variance from splines"
        for name, layer in facts
    )  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """The class that a model predicts for a picture, its probability, and the true class."""

    predicted: str
    probability: float
    true: str

    def renamed(self, names: Mapping[str, str]) -> Answer:
        """The same answer with other class names."""
        return Answer(names[self.predicted], self.probability, names[self.true])

    def title(self, inches: float, size: float) -> str:
        """The answer in lines of at most `inches`, in letters of `size` points."""
        width = inches - text_width("true: ", size)
        names = list(dict.fromkeys((self.predicted, self.true)))  # one name if both are equal
        short = dict(zip(names, shortened_names(names, width, size), strict=True))
        predicted, true = short[self.predicted].split(" "), short[self.true].split(" ")
        probability = f"({in_percent(self.probability)})"
        lines = ["predicted", *predicted, probability], ["true:", *true]
        return "\n".join(wrapped(words, inches, size) for words in lines)

    def __str__(self) -> str:
        return f"predicted {self.predicted} ({in_percent(self.probability)}), true: {self.true}"


def in_percent(probability: float) -> str:
    """A probability in whole percent, but never 0 % or 100 % unless it is exactly 0 or 1."""
    if 0 < probability < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 <= probability < 1 else f"{100 * probability:.0f} %"


def draw_attention(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    answers: Sequence[Answer],
    theme: str = "light",
) -> Figure:
    """A grid of pictures: a row per kind of map, a column per picture.

    Args:
        rows: for each row its name and a picture per answer.
        answers: the titles of the columns.
    """
    look = THEMES[theme]
    columns = max(len(answers), 4)
    pitch = max(1.5, 9.6 / columns)  # inches from column to column
    titles = [answer.title(pitch - 0.15, TITLE_SIZE) for answer in answers]
    above = 0.14 * max(title.count("\n") + 1 for title in titles)
    figure = new_figure(look, 0.3 + pitch * len(answers), above + pitch * len(rows))
    axes = figure.subplots(len(rows), len(answers), squeeze=False)
    for line, (name, pictures) in zip(axes, rows, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=9, color=look.ink)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=TITLE_SIZE, color=look.ink, parse_math=False)
    return figure


def attention_alt_text(rows: Sequence[tuple[str, object]], answers: Sequence[Answer]) -> str:
    """Alternative text of `draw_attention`."""
    names = ", ".join(name for name, _ in rows)
    described = "; ".join(map(str, answers))
    return (
        f"{number(len(answers), 'picture')} ({described}),"
        f" each in {number(len(rows), 'row')}: {names}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
