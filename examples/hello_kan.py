"""Hello, KAN: finds the formula exp(sin(pi x) + y^2) from samples, step by step.

    python examples/hello_kan.py --seed 0
    python examples/hello_kan.py --picture FILE     also draws the network, before and after

The steps are those of pykan's first example: fit with regularization, prune, fit, refine the grid,
fit, replace edges by symbolic functions, fit. `--json` prints only one line of JSON.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kansformer.symbolic import (
    SymbolicKAN,
    auto_symbolic,
    create_dataset,
    ex_round,
    fit,
    plot,
    prune,
    refine,
    symbolic_formula,
)


def f(x: Tensor) -> Tensor:
    """exp(sin(pi x_1) + x_2^2) of (N, 2)."""
    return torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1] ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the samples and the network (default 0)"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the network into this file"
    )
    parser.add_argument("--json", action="store_true", help="print only one line of JSON")
    args = parser.parse_args()
    start = time.perf_counter()

    def report(step: str, model: SymbolicKAN, errors: dict[str, list[float]] | None = None) -> None:
        if not args.json:
            edges = f"{model.edge_count()} edges"
            after = f", RMSE {errors['train_rmse'][-1]:.1e} on training samples" if errors else ""
            print(f"{time.perf_counter() - start:5.1f} s  {step}: {edges}{after}")

    dataset = create_dataset(f, n_var=2, ranges=(-1, 1), train_num=1000, test_num=1000,
                             seed=args.seed)  # fmt: skip
    model = SymbolicKAN([2, 5, 1], grid_size=3, spline_order=3, seed=args.seed)
    bar = False if args.json else None
    report("start", model)

    report("fit with regularization", model, fit(model, dataset, steps=50, lamb=3e-3, progress=bar))
    fitted, model = model, prune(model, dataset, node_threshold=0.1, edge_threshold=0.1)
    report("prune", model)
    report("fit", model, fit(model, dataset, steps=20, progress=bar))
    model = refine(model, 10)
    report("refine and fit", model, fit(model, dataset, steps=20, progress=bar))
    model = auto_symbolic(model, dataset)
    errors = fit(model, dataset, steps=20, progress=bar)
    report("replace edges by functions and fit", model, errors)

    if args.picture:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=(11, 4.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 1))
        plot(fitted, dataset, title="after the first fit", axes=left)
        plot(model, dataset, title="at the end", axes=right)
        figure.savefig(args.picture, dpi=110)
    formula = str(ex_round(symbolic_formula(model)[0], 4))
    if not args.json:
        for edge in model.report:
            print(f"         {edge}")
        print(f"\ntest RMSE {errors['test_rmse'][-1]:.1e}\n{formula}")
        return
    print(json.dumps({
        "formula": formula,
        "train_rmse": errors["train_rmse"][-1],
        "test_rmse": errors["test_rmse"][-1],
        "seconds": time.perf_counter() - start,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
