"""The network as the KAN paper draws it: a small curve on every edge."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kansformer.figures import fit_to_show
from kansformer.symbolic.activations import LayerTrace, trace, training_samples
from kansformer.symbolic.attribution import attribute
from kansformer.symbolic.dataset import Dataset
from kansformer.symbolic.formula import ex_round, symbolic_formula
from kansformer.symbolic.symbolic_layer import SymbolicKAN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLINE, FORMULA, INK = "#1f4e79", "#c0392b", "#333333"
BOX = 0.34  # half the side of a curve's box at most, in units of the space between levels
CURVE_POINTS = 200


def plot(
    model: nn.Module,
    data: Dataset | Tensor | None = None,
    *,
    contrast: float = 3.0,
    title: str | None = None,
    axes: Any = None,
) -> Figure:
    """Draws the network: inputs below, outputs above, a curve on every edge that is not cut.

    Edges fade with their score (`attribute`), as tanh(contrast · score); formulas are red and
    carry their names; products are crossed circles.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        data: samples for the curves and the scores, see `attribute`.
        contrast: larger shows weak edges better.
        title: above the network.
        axes: matplotlib's, to draw into; else a figure is made.

    Returns:
        A figure of matplotlib, bound to no window; `figure.savefig(...)` writes it.
    """
    from matplotlib.figure import Figure

    own = SymbolicKAN.of(model).cpu()
    x = training_samples(own, data)
    scores = attribute(own, x)
    with torch.no_grad():
        _, layers = trace(own, x)
    counts = [len(scores.nodes[0])] + [part.layer.nodes for part in layers]
    boxes = [max(int(part.layer.mask.sum()), 1) for part in layers]
    width = max(3.0, 1.05 * max(max(boxes), 1.5 * max(counts)))
    if axes is None:
        size = min(width, 14), 0.6 + 2.1 * len(layers)
        axes = Figure(figsize=size, layout="constrained").subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    # one unit of length is a box; a level is two units high
    unit = 2.1
    span = max(max(boxes), 1.5 * max(counts))
    nodes = [_spread(count, span) for count in counts]
    for number, part in enumerate(layers):
        base = unit * number
        _draw_layer(axes, part, scores.edges[number], nodes[number], nodes[number + 1], base, unit,
                    span, contrast)  # fmt: skip
    for level, places in enumerate(nodes):
        products = 0 if level == 0 else layers[level - 1].layer.products
        for k, place in enumerate(places):
            is_product = k >= len(places) - products
            axes.plot(place, unit * level, "o", ms=9 if is_product else 6, zorder=4,
                      mfc="white" if is_product else INK, mec=INK)  # fmt: skip
            if is_product:
                axes.plot(place, unit * level, "x", ms=5, color=INK, zorder=5)
    for place, number in zip(nodes[0], own.inputs.tolist(), strict=True):
        axes.text(place, -0.22, ha="center", va="top", fontsize=13,
                  **_mathematical(own.names[number]))  # fmt: skip
    for k, place in enumerate(nodes[-1]):
        axes.text(place, unit * len(layers) + 0.2, _output_label(own, k, len(nodes[-1])),
                  ha="center", va="bottom", fontsize=12)  # fmt: skip
    axes.set_xlim(-0.3, span + 0.3)
    axes.set_ylim(-0.6, unit * len(layers) + 0.65)
    if title is not None:
        axes.set_title(title, fontsize=12)
    return axes.get_figure()


def _spread(count: int, span: float) -> np.ndarray:
    """Places of `count` things over a width."""
    return (np.arange(count) + 0.5) * span / max(count, 1)


def _draw_layer(
    axes: Any, part: LayerTrace, scores: Tensor, below: np.ndarray, above: np.ndarray,
    base: float, unit: float, span: float, contrast: float,
) -> None:  # fmt: skip
    layer = part.layer
    edges = sorted(layer.mask.nonzero().tolist(), key=lambda edge: (edge[1], edge[0]))
    places = _spread(len(edges), span)
    half = min(0.42, 0.42 * span / max(len(edges), 1))
    plain = layer.nodes - layer.products
    with torch.no_grad():
        values = layer.edge_values(part.x)
    for (o, i), place in zip(edges, places, strict=True):
        node = o if o < plain else plain + (o - plain) // 2
        formula = layer.names[o][i]
        colour = SPLINE if formula is None else FORMULA
        alpha = 0.06 + 0.94 * float(np.tanh(contrast * float(scores[o, i])))
        low, high = base + unit / 2 - half, base + unit / 2 + half
        line = {"color": INK, "alpha": alpha, "lw": 1.3, "zorder": 1, "solid_capstyle": "round"}
        axes.plot([below[i], place], [base, low], **line)
        axes.plot([place, above[node]], [high, base + unit], **line)
        _draw_curve(
            axes, part.x[:, i], values[:, o, i], place, base + unit / 2, half, colour, alpha
        )
        if formula is not None:
            axes.text(place, low, fontsize=9, color=FORMULA, ha="center", va="center", zorder=6,
                      bbox={"fc": "white", "ec": "none", "pad": 0.8}, **_mathematical(formula),
                      )  # fmt: skip


def _draw_curve(
    axes: Any, x: Tensor, y: Tensor, place: float, height: float, half: float, colour: str,
    alpha: float,
) -> None:  # fmt: skip
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (place - half, height - half), 2 * half, 2 * half, zorder=2, fc="white", lw=1.0,
            boxstyle=f"round,pad=0,rounding_size={0.15 * half}", ec=(0.2, 0.2, 0.2, alpha),
        )
    )  # fmt: skip
    order = x.argsort()
    order = order[torch.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS)).round().long()]
    axes.plot(place + 0.8 * half * _between(x[order]), height + 0.75 * half * _between(y[order]),
              color=colour, alpha=alpha, lw=1.8, zorder=3)  # fmt: skip


def _between(values: Tensor) -> np.ndarray:
    """Values moved to [-1, 1]; 0 for a constant."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-12:
        return np.zeros(len(values))
    return (2 * (values.numpy() - low) / (high - low)) - 1


def _mathematical(name: str) -> dict[str, Any]:
    """A name as matplotlib's mathematics sets it: x_12 gets its whole subscript.

    Names that are not of this kind, such as those of a table's columns, are drawn as they are.
    """
    words = {"sqrt": r"\sqrt{x}", "1/x": "1/x", "1/x^2": "1/x^2"}
    if name in words or re.fullmatch(r"x(\^\d|_[A-Za-z0-9]+)?", name):
        stem, _, index = words.get(name, name).partition("_")
        return {"s": f"${stem}_{{{index}}}$" if index else f"${stem}$"}
    return {"s": fit_to_show(name), "parse_math": False}


def _output_label(model: SymbolicKAN, number: int, count: int) -> str:
    """The formula of an output, if it is one and short; else its name."""
    name = "$y$" if count == 1 else f"$y_{{{number + 1}}}$"
    if any(layer.numeric().any() for layer in model.layers):
        return name
    import sympy

    text = sympy.latex(ex_round(symbolic_formula(model)[number], 2))
    return f"${text}$" if len(text) < 60 else name
