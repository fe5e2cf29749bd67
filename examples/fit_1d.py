"""Fits a noisy function of one variable, and shows how the grid size affects the fit.

python examples/fit_1d.py [--save FILE.png]
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kansformer.regression import KANTrainer, create_synthetic_dataset
from kansformer.regression.synthetic import FUNCTIONS
from models.kan_variants import DeepKAN

GRIDS = (3, 10, 40)


def fit(grid_size: int) -> tuple[DeepKAN, float]:
    """Fits a single spline to noisy samples; returns it and its RMSE on samples without noise."""
    torch.manual_seed(0)
    train = create_synthetic_dataset("bumps", 200, noise=0.1, seed=0)
    test = create_synthetic_dataset("bumps", 1000, seed=1)
    model = DeepKAN([1, 1], grid_size=grid_size).double()
    trainer = KANTrainer(model, lr=0.05, weight_decay=0, batch_size=None)
    trainer.fit(train.x, train.y, epochs=400)
    return model, float((trainer.predict(test.x) - test.y).square().mean().sqrt())


def draw(models: dict[int, tuple[DeepKAN, float]], path: Path) -> None:
    """The samples, the function, and each fit."""
    from matplotlib.figure import Figure

    train = create_synthetic_dataset("bumps", 200, noise=0.1, seed=0)
    x = torch.linspace(-1, 1, 500, dtype=torch.float64)[:, None]
    truth = FUNCTIONS["bumps"][1](x)
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True)
    for axes, (grid_size, (model, error)) in zip(panels, models.items(), strict=True):
        axes.scatter(train.x, train.y, s=9, color="0.75", linewidths=0)
        axes.plot(x, truth, color="0.35", lw=1, ls="--", label="function")
        axes.plot(x, model(x).detach(), lw=1.8, label="spline")
        axes.set_title(f"{grid_size} intervals: RMSE {error:.3f}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, metavar="FILE", help="draw the fits")
    args = parser.parse_args()
    models = {grid_size: fit(grid_size) for grid_size in GRIDS}
    for grid_size, (_, error) in models.items():
        print(f"{grid_size:3} intervals: RMSE {error:.4f} on samples without noise")
    if args.save:
        draw(models, args.save)
        print(f"wrote {args.save}")


if __name__ == "__main__":
    main()
