"""Interpretability: a modular KAN on diabetes data, and what each named module has learned.

python examples/read_modules.py [--save FILE.png]
"""

import argparse
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kansformer.regression import KANTrainer, StandardizedModel, Standardizer
from models.kan_variants import ModularKAN

NAMES = ["age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu"]
MODULES = {
    "person": ["age", "sex"],
    "weight": ["bmi"],
    "pressure": ["bp"],
    "lipids": ["tc", "ldl", "hdl", "tch", "ltg"],
    "sugar": ["glu"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, metavar="FILE", help="draw modules of one input")
    args = parser.parse_args()
    torch.manual_seed(0)
    x, y = (torch.from_numpy(part) for part in load_diabetes(return_X_y=True, scaled=False))
    parts = train_test_split(x, y[:, None], test_size=0.25, random_state=0)
    x_train, x_test, y_train, y_test = parts

    network = ModularKAN(NAMES, MODULES, hidden=(), grid_size=3, grid_range=(-3, 3))
    model = StandardizedModel(Standardizer(10), network, Standardizer(1)).double()
    inputs, targets = model.inputs.fit(x_train)(x_train), model.outputs.fit(y_train)(y_train)
    held_out = model.inputs(x_test), model.outputs(y_test)
    trainer = KANTrainer(network, lr=0.02, weight_decay=1.0, l2=1e-3, batch_size=None)
    trainer.fit(inputs, targets, epochs=200)
    error = (trainer.predict(held_out[0]) - held_out[1]).square().mean()
    print(f"R² on {len(x_test)} patients: {1 - float(error / held_out[1].var(correction=0)):.3f}")

    with torch.no_grad():
        contributions = network.contributions(inputs)
    unit = float(model.outputs.scale)
    print("standard deviation of each module's contribution to the disease progression:")
    for name, values in sorted(contributions.items(), key=lambda item: -float(item[1].std())):
        print(f"  {name:9} {unit * float(values.std()):5.1f}   from {', '.join(MODULES[name])}")
    if args.save:
        draw(network, model, x_train, args.save)
        print(f"wrote {args.save}")


def draw(network: ModularKAN, model: StandardizedModel, x: torch.Tensor, path: Path) -> None:
    """Draws the functions of the modules with a single input, over the data's range."""
    from matplotlib.figure import Figure

    single = [name for name, inputs in MODULES.items() if len(inputs) == 1]
    figure = Figure(figsize=(3 * len(single), 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(single), sharey=True), single, strict=True):
        column = NAMES.index(MODULES[name][0])
        points = x.mean(dim=0).repeat(200, 1)
        points[:, column] = torch.linspace(
            float(x[:, column].min()), float(x[:, column].max()), 200
        )
        with torch.no_grad():
            curve = model.outputs.scale * network.contributions(model.inputs(points))[name][:, 0]
        axes.plot(points[:, column], curve - curve.mean(), lw=2)
        axes.plot(x[:, column], torch.full((len(x),), -95.0), "|", color="0.6", ms=6, mew=0.5)
        axes.set_title(f"{name}: {MODULES[name][0]}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("change in progression", fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
