"""Finds ten formulas from samples, all with the same settings, and prints a table.

    python examples/find_formulas.py --write      writes the table into examples/README.md

Each formula is found by `find_formula` with default settings from 1000 training samples, which also
decide whether it is exact. The table shows the error on 1000 test samples.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kansformer.symbolic import create_dataset, ex_round, find_formula, symbolic_formula
from kansformer.symbolic.fitting import rmse

README = Path(__file__).resolve().parent / "README.md"
START, END = "<!-- formulas -->", "<!-- end of formulas -->"
GOAL = 1e-8

FORMULAS = [  # text, number of variables, their range, function
    ("x·y", 2, (-1, 1), lambda x, y: x * y),
    ("sin(x) + y²", 2, (-3, 3), lambda x, y: x.sin() + y**2),
    ("exp(−x²)·cos(y)", 2, (-2, 2), lambda x, y: (-(x**2)).exp() * y.cos()),
    ("sqrt(x² + y²)", 2, (-1, 1), lambda x, y: (x**2 + y**2).sqrt()),
    ("tanh(3x) + y", 2, (-1, 1), lambda x, y: (3 * x).tanh() + y),
    ("log(1 + x² + y²)", 2, (-1, 1), lambda x, y: (1 + x**2 + y**2).log()),
    ("x/(1 + y²)", 2, (-1, 1), lambda x, y: x / (1 + y**2)),
    ("sin(πx)·y", 2, (-1, 1), lambda x, y: (math.pi * x).sin() * y),
    ("(x + y)³", 2, (-1, 1), lambda x, y: (x + y) ** 3),
    ("exp(sin(x² + y²) + sin(z² + w²))", 4, (-1, 1),
     lambda x, y, z, w: ((x**2 + y**2).sin() + (z**2 + w**2).sin()).exp()),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the samples and networks (default 0)"
    )
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="N", help="numbers of the formulas to find, from 1"
    )
    parser.add_argument(
        "--write", action="store_true", help="write the table into examples/README.md"
    )
    args = parser.parse_args()

    rows = ["| | formula | range | found | width | test RMSE | seconds |", "|" + " --- |" * 7]
    print("\n".join(rows))
    hits = 0
    chosen = args.only or range(1, len(FORMULAS) + 1)
    for number in chosen:
        text, n_var, ranges, function = FORMULAS[number - 1]

        def f(x: Tensor, function=function) -> Tensor:
            return function(*x.unbind(dim=1))

        dataset = create_dataset(f, n_var, ranges, seed=args.seed)
        start = time.perf_counter()
        model = find_formula(dataset, seed=args.seed)
        seconds = time.perf_counter() - start
        error = rmse(model, dataset["test_input"], dataset["test_label"])
        exact = error <= GOAL and not any(layer.numeric().any() for layer in model.layers)
        hits += exact
        names = ["x", "y", "z", "w"][:n_var]
        formula = str(ex_round(symbolic_formula(model, names)[0], 4))
        formula = formula if len(formula) < 80 else formula[:77] + "..."
        width = ", ".join(str(s) if not p else f"({s}, {p})" for s, p in model.width)
        rows.append(
            f"| {number} | {text} | {ranges[0]} to {ranges[1]} |"
            f" {'' if exact else 'missed: '}`{formula}` | {width} | {error:.1e} | {seconds:.0f} |"
        )
        print(rows[-1], flush=True)
    rows.append(f"\n{hits} of {len(chosen)} with an error of at most {GOAL:.0e}.")
    print(rows[-1])
    if args.write:
        before, rest = README.read_text().split(START)
        after = rest.split(END)[1]
        table = "\n".join(rows)
        README.write_text(f"{before}{START}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
