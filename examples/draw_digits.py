"""Draws predictions for test digits, and learned functions with and without their splines.

python examples/draw_digits.py FILE [--weights FILE]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kansformer.data import load_data
from kansformer.infer import Predictor

COLUMNS = 8


def strongest_functions(layer: torch.nn.Module, count: int) -> tuple[np.ndarray, ...]:
    """The functions of the edges with the largest splines.

    Returns:
        Points (P,) on the grid, the functions there (P, count), and the same without splines.
    """
    low, high = layer.grid[0, layer.spline_order], layer.grid[0, -layer.spline_order - 1]
    x = torch.linspace(float(low), float(high), 201)
    with torch.no_grad():
        weight = layer.scaled_spline_weight  # (out, in, n)
        strength = weight.std(dim=-1).flatten()
        edges = strength.topk(count).indices
        out, into = edges // layer.in_features, edges % layer.in_features
        basis = layer.b_splines(x[:, None].expand(-1, layer.in_features))  # (P, in, n)
        splines = torch.einsum("pen,en->pe", basis[:, into], weight[out, into])
        base = layer.base_activation(x)[:, None] * layer.base_weight[out, into]
    return x.numpy(), (base + splines).numpy(), base.numpy()


def draw(predictor: Predictor) -> Figure:
    """Test pictures with their predictions on top, learned functions below."""
    test = load_data("digits").test
    chosen = [int(np.flatnonzero(test.labels == digit)[0]) for digit in range(COLUMNS)]
    pictures = [test.open(index) for index in chosen]
    answers = predictor(pictures, topk=1)
    x, functions, bases = strongest_functions(predictor.model.blocks[0].mlp.fc1, COLUMNS)

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    rows = figure.subplots(2, COLUMNS)
    for axes, picture, answer in zip(rows[0], pictures, answers, strict=True):
        top = answer["top"][0]
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{top['class']}  ({100 * top['probability']:.0f} %)", fontsize=10)
        axes.set_axis_off()
    for number, axes in enumerate(rows[1]):
        axes.axhline(0, color="0.8", lw=0.8)
        axes.plot(x, functions[:, number], color="C0")
        axes.plot(x, bases[:, number], "--", color="C1", lw=1)
        axes.set(xticks=[x[0], 0, x[-1]], yticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle("predictions for test scans, and functions of a block (dashed: without spline)")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="where to write the picture")
    parser.add_argument("--weights", default=str(ROOT / "weights" / "digits.safetensors"))
    args = parser.parse_args()
    args.file.parent.mkdir(parents=True, exist_ok=True)
    draw(Predictor.load(args.weights)).savefig(args.file, dpi=110)
    print(f"wrote {args.file}")


if __name__ == "__main__":
    main()
