"""Drawings of a network in the style of the KAN paper: a small curve on every edge."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kansformer.curve_fitting.expressions import ex_round
from kansformer.figures import fit_to_show
from kansformer.symbolic.activations import LayerActivations, run_layers
from kansformer.symbolic.attribution import attribute
from kansformer.symbolic.dataset import Dataset, training_samples
from kansformer.symbolic.formula import symbolic_formula
from kansformer.symbolic.symbolic_kan import SymbolicKAN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLINE, FORMULA, INK = "#1f4e79", "#c0392b", "#333333"
LAYER_HEIGHT = 2.1  # where the box of a curve is at most 0.84 high
CURVE_POINTS = 200


def plot(
    model: nn.Module,
    data: Dataset | Tensor | None = None,
    *,
    contrast: float = 3.0,
    title: str | None = None,
    axes: Any = None,
) -> Figure:
    """Draws a network: inputs at the bottom, outputs at the top, a curve on every edge.

    The opacity of an edge is tanh(contrast · score), with the score of `attribute`. Formulas are
    red and labelled with their function. Products are crossed circles. Removed edges are left out.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        data: samples for the curves and the scores, see `attribute`.
        contrast: larger values make weak edges more visible.
        title: above the network.
        axes: of matplotlib, to draw into; default: the axes of a new figure.

    Returns:
        A matplotlib figure that belongs to no window; `figure.savefig(...)` writes it.
    """
    from matplotlib.figure import Figure

    network = SymbolicKAN.of(model).cpu()
    x = training_samples(network, data)
    scores = attribute(network, x)
    with torch.no_grad():
        _, layers = run_layers(network, x)
    counts = [len(scores.nodes[0])] + [part.layer.nodes for part in layers]
    boxes = [max(int(part.layer.mask.sum()), 1) for part in layers]
    span = max(max(boxes), 1.5 * max(counts))
    if axes is None:
        size = min(max(3.0, 1.05 * span), 14), 0.6 + LAYER_HEIGHT * len(layers)
        axes = Figure(figsize=size, layout="constrained").subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    nodes = [_evenly_spaced(count, span) for count in counts]
    for number, part in enumerate(layers):
        _draw_layer(axes, part, scores.edges[number], nodes[number], nodes[number + 1],
                    LAYER_HEIGHT * number, span, contrast)  # fmt: skip
    for level, positions in enumerate(nodes):
        y = LAYER_HEIGHT * level
        products = 0 if level == 0 else layers[level - 1].layer.products
        for k, x_node in enumerate(positions):
            is_product = k >= len(positions) - products
            axes.plot(x_node, y, "o", ms=9 if is_product else 6, zorder=4,
                      mfc="white" if is_product else INK, mec=INK)  # fmt: skip
            if is_product:
                axes.plot(x_node, y, "x", ms=5, color=INK, zorder=5)
    for x_node, number in zip(nodes[0], network.inputs.tolist(), strict=True):
        axes.text(x_node, -0.22, ha="center", va="top", fontsize=13,
                  **_as_math(network.names[number]))  # fmt: skip
    top = LAYER_HEIGHT * len(layers)
    for k, x_node in enumerate(nodes[-1]):
        axes.text(x_node, top + 0.2, _output_label(network, k, len(nodes[-1])),
                  ha="center", va="bottom", fontsize=12)  # fmt: skip
    axes.set_xlim(-0.3, span + 0.3)
    axes.set_ylim(-0.6, top + 0.65)
    if title is not None:
        axes.set_title(title, fontsize=12)
    return axes.get_figure()


def _evenly_spaced(count: int, span: float) -> np.ndarray:
    """Positions of `count` items over a width."""
    return (np.arange(count) + 0.5) * span / max(count, 1)


def _draw_layer(
    axes: Any, part: LayerActivations, scores: Tensor, below: np.ndarray, above: np.ndarray,
    base: float, span: float, contrast: float,
) -> None:  # fmt: skip
    """Draws the edges between the nodes at x positions `below` and `above`, from height `base`."""
    layer = part.layer
    edges = sorted(layer.mask.nonzero().tolist(), key=lambda edge: (edge[1], edge[0]))
    centers = _evenly_spaced(len(edges), span)
    half = min(0.42, 0.42 * span / max(len(edges), 1))
    with torch.no_grad():
        values = layer.edge_values(part.x)
    first = layer.plain_sums
    middle = base + LAYER_HEIGHT / 2
    for (o, i), x_box in zip(edges, centers, strict=True):
        node = o if o < first else first + (o - first) // 2
        formula = layer.names[o][i]
        color = SPLINE if formula is None else FORMULA
        alpha = 0.06 + 0.94 * float(np.tanh(contrast * float(scores[o, i])))
        low, high = middle - half, middle + half
        line = {"color": INK, "alpha": alpha, "lw": 1.3, "zorder": 1, "solid_capstyle": "round"}
        axes.plot([below[i], x_box], [base, low], **line)
        axes.plot([x_box, above[node]], [high, base + LAYER_HEIGHT], **line)
        _draw_curve(axes, part.x[:, i], values[:, o, i], x_box, middle, half, color, alpha)
        if formula is not None:
            axes.text(x_box, low, fontsize=9, color=FORMULA, ha="center", va="center", zorder=6,
                      bbox={"fc": "white", "ec": "none", "pad": 0.8}, **_as_math(formula),
                      )  # fmt: skip


def _draw_curve(
    axes: Any, x: Tensor, y: Tensor, x_box: float, y_box: float, half: float, color: str,
    alpha: float,
) -> None:  # fmt: skip
    """Draws the curve through samples (N,) into a square box with that center."""
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x_box - half, y_box - half), 2 * half, 2 * half, zorder=2, fc="white", lw=1.0,
            boxstyle=f"round,pad=0,rounding_size={0.15 * half}", ec=(0.2, 0.2, 0.2, alpha),
        )
    )  # fmt: skip
    order = x.argsort()
    order = order[torch.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS)).round().long()]
    curve_x = x_box + 0.8 * half * _normalized(x[order])
    curve_y = y_box + 0.75 * half * _normalized(y[order])
    axes.plot(curve_x, curve_y, color=color, alpha=alpha, lw=1.8, zorder=3)


def _normalized(values: Tensor) -> np.ndarray:
    """Values scaled to [-1, 1]; 0 for a constant."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-12:
        return np.zeros(len(values))
    return (2 * (values.numpy() - low) / (high - low)) - 1


def _as_math(name: str) -> dict[str, Any]:
    """Arguments of `axes.text` that typeset a name such as x_12 or x^2 as mathematics.

    Other names, such as those of table columns, are drawn literally.
    """
    words = {"sqrt": r"\sqrt{x}", "1/x": "1/x", "1/x^2": "1/x^2"}
    if name in words or re.fullmatch(r"x(\^\d|_[A-Za-z0-9]+)?", name):
        stem, _, index = words.get(name, name).partition("_")
        return {"s": f"${stem}_{{{index}}}$" if index else f"${stem}$"}
    return {"s": fit_to_show(name), "parse_math": False}


def _output_label(model: SymbolicKAN, number: int, count: int) -> str:
    """The formula of an output if it has a short one, else its name."""
    name = "$y$" if count == 1 else f"$y_{{{number + 1}}}$"
    if any(layer.numeric().any() for layer in model.layers):
        return name
    import sympy

    text = sympy.latex(ex_round(symbolic_formula(model)[number], 2))
    return f"${text}$" if len(text) < 60 else name
