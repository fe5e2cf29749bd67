"""Fits exp(sin(πx) + y²), and compares a plain, a deep and a residual KAN.

python examples/fit_2d.py [--save FILE.png]
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kansformer.regression import KANTrainer, create_synthetic_dataset
from models.kan_grid import fit_grids
from models.kan_variants import DeepKAN, ResidualKAN

TEST = create_synthetic_dataset("hello", 1000, seed=1)


def fit(model: nn.Module) -> float:
    """Trains on 500 samples, and returns the RMSE on 1,000 others."""
    model.double()
    train = create_synthetic_dataset("hello", 500, seed=0)
    fit_grids(model, train.x)
    decay = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)  # noqa: E731
    trainer = KANTrainer(model, lr=0.03, weight_decay=0, batch_size=None, scheduler=decay)
    trainer.fit(train.x, train.y, epochs=400)
    return float((trainer.predict(TEST.x) - TEST.y).square().mean().sqrt())


def draw(model: nn.Module, name: str, path: Path) -> None:
    """Draws the function, the fit, and the absolute error."""
    from matplotlib.figure import Figure

    line = torch.linspace(-1, 1, 101, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    truth = torch.exp(torch.sin(torch.pi * points[:, 0]) + points[:, 1].square())
    with torch.no_grad():
        fitted = model(points)[:, 0]

    def picture(values: Tensor) -> Tensor:
        return values.reshape(101, 101).T

    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    top = float(truth.max())
    for axes, values, title in ((panels[0], truth, "exp(sin πx + y²)"), (panels[1], fitted, name)):
        image = axes.contourf(line, line, picture(values), levels=20, vmin=0, vmax=top)
        axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=panels[1])
    error = panels[2].contourf(line, line, picture((fitted - truth).abs()), levels=20, cmap="magma")
    figure.colorbar(error, ax=panels[2])
    panels[2].set_title("absolute error", fontsize=10)
    for axes in panels:
        axes.set(xlabel="x", box_aspect=1)
    panels[0].set_ylabel("y")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, metavar="FILE", help="draw the best fit")
    args = parser.parse_args()
    torch.manual_seed(0)
    models = {
        "plain [2, 5, 1]": DeepKAN([2, 5, 1], norm=False),
        "deep [2, 8, 8, 1]": DeepKAN([2, 8, 8, 1]),
        "residual [2, 5, 5, 1]": ResidualKAN([2, 5, 5, 1]),
    }
    errors = {name: fit(model) for name, model in models.items()}
    for name, error in errors.items():
        print(f"{name:22} test RMSE {error:.4f}")
    if args.save:
        best = min(errors, key=lambda name: errors[name])
        draw(models[best], f"{best}: RMSE {errors[best]:.4f}", args.save)
        print(f"wrote {args.save}")


if __name__ == "__main__":
    main()
