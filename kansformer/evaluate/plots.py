"""Pictures of an evaluation, as PNGs on white, so that they can be read on any page."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from kansformer.evaluate.calibration import Reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 15  # up to so many classes each cell of the confusion matrix shows its count
NAMED = 50  # up to so many classes are named on its sides
NAME_LENGTH = 18


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str]) -> bytes:
    """The confusion matrix, each row as shares of its class.

    Args:
        confusion: (classes, classes) counts; rows are true classes.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(class_names)
    support = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, support, out=np.zeros(confusion.shape), where=support > 0)
    side = min(4 + 0.22 * classes, 11)
    figure = Figure(figsize=(side + 1, side), layout="constrained", facecolor="white")
    axes = figure.subplots()
    # cividis reads the same to the colour-blind; the root shows rare mistakes too
    image = axes.imshow(shares, cmap="cividis", norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    bar.outline.set_visible(False)
    if classes <= NAMED:
        short = [n if len(n) <= NAME_LENGTH else n[: NAME_LENGTH - 1] + "…" for n in class_names]
        size = 9 if classes <= 25 else 6
        axes.set_xticks(range(classes), short, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(classes), short, fontsize=size, parse_math=False)
    axes.tick_params(length=0 if classes <= NAMED else 3)
    if classes <= NUMBERED:
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "black" if shares[row, column] > 0.25 else "white"
                axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    unit = "" if classes <= NAMED else " (its number)"
    axes.set(xlabel=f"predicted class{unit}", ylabel=f"true class{unit}")
    axes.spines[:].set_visible(False)
    return _as_png(figure)


def draw_reliability(curve: Reliability, title: str) -> bytes:
    """Accuracy by confidence, and how many predictions have it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 5), layout="constrained", facecolor="white")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], "--", color="0.5", lw=1, label="perfectly calibrated")
    axes.plot(curve.confidence, curve.accuracy, "o-", color="#0072B2", ms=5, label="this model")
    axes.set(ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    counts.vlines(curve.confidence, 0.5, curve.count, color="#0072B2", lw=6)
    counts.set(xlabel="confidence (probability of the predicted class)", ylabel="pictures")
    counts.set_yscale("log")
    counts.set_ylim(0.5, 2 * curve.count.max())
    for part in (axes, counts):
        part.grid(alpha=0.3)
        part.spines[["top", "right"]].set_visible(False)
    return _as_png(figure)


def _as_png(figure: "Figure") -> bytes:
    packed = BytesIO()
    figure.savefig(packed, format="png", dpi=120)
    return packed.getvalue()
