"""The walk from samples of exp(sin(pi x) + y^2) to the formula: ours and pykan's, side by side.

    python benchmarks/bench_hello.py --seeds 10 --pykan-seeds 1 --json hello.json

Ours is `examples/hello_kan.py`; pykan's is its own first example, with its settings. Each runs in a
process of its own, in turn, on one thread; the seconds are those of the walk, without imports.
Where pykan is not installed (requirements-dev.txt), ours runs alone.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import measure

LIBRARY = ["x", "x^2", "x^3", "x^4", "exp", "log", "sqrt", "tanh", "sin", "abs"]
WANTED = "exp(x_2**2 + sin(3.1416*x_1))"


def f(x: Tensor) -> Tensor:
    """The function to be found."""
    return torch.exp(torch.sin(math.pi * x[:, [0]]) + x[:, [1]] ** 2)


def pykan_walk(seed: int) -> dict[str, Any]:
    """pykan's walk in this process; it writes into the current folder."""
    from kan import KAN
    from kan.utils import create_dataset, ex_round

    start = time.perf_counter()
    torch.set_default_dtype(torch.float64)
    model = KAN(width=[2, 5, 1], grid=3, k=3, seed=seed, device="cpu")
    dataset = create_dataset(f, n_var=2, device="cpu", seed=seed)
    model.fit(dataset, opt="LBFGS", steps=50, lamb=0.001)
    model = model.prune()
    model.fit(dataset, opt="LBFGS", steps=50)
    model = model.refine(10)
    model.fit(dataset, opt="LBFGS", steps=50)
    model.auto_symbolic(lib=LIBRARY)
    errors = model.fit(dataset, opt="LBFGS", steps=50)
    return {
        "formula": str(ex_round(model.symbolic_formula()[0][0], 4)),
        "train_rmse": float(errors["train_loss"][-1]),
        "test_rmse": float(errors["test_loss"][-1]),
        "seconds": time.perf_counter() - start,
    }


def run(arguments: list[str]) -> dict[str, Any]:
    """The last line that a script of ours prints, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"formula": f"failed: {last}", "train_rmse": math.nan, "test_rmse": math.nan,
                "seconds": math.nan}  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Runs the walks and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="of ours: 0, 1, ... (default 10)")
    parser.add_argument("--pykan-seeds", type=int, default=1, help="of pykan's: 42, 43, ...")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--pykan-walk", type=int, metavar="SEED", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pykan_walk is not None:
        print(json.dumps(pykan_walk(options.pykan_walk)))
        return

    facts = measure.machine("cpu", ("torch", "pykan"))
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    jobs = [("ours", seed, [str(ROOT / "examples" / "hello_kan.py"), "--json", "--seed", str(seed)])
            for seed in range(options.seeds)]  # fmt: skip
    if find_spec("kan") is None:
        print("pykan is not installed; see requirements-dev.txt")
    else:
        jobs += [("pykan", seed, [str(Path(__file__).resolve()), "--pykan-walk", str(seed)])
                 for seed in range(42, 42 + options.pykan_seeds)]  # fmt: skip
    print(f"{'':8}{'seed':>5}{'seconds':>9}{'test RMSE':>11}  formula")
    records = []
    for name, seed, arguments in jobs:
        record = {"name": name, "seed": seed, **run(arguments)}
        records.append(record)
        print(f"{name:8}{seed:5}{record['seconds']:9.1f}{record['test_rmse']:11.1e} "
              f" {record['formula'][:90]}", flush=True)  # fmt: skip
    ours = [r for r in records if r["name"] == "ours"]
    exact = sum(r["formula"] == WANTED and r["test_rmse"] <= 1e-12 for r in ours)
    print(f"\nours: {exact} of {len(ours)} seeds end at {WANTED} and at most 1e-12")
    theirs = [r["seconds"] for r in records if r["name"] == "pykan"]
    if ours and theirs:
        median = statistics.median(r["seconds"] for r in ours)
        print(f"pykan's time over ours, medians: {statistics.median(theirs) / median:.1f}")
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "runs": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
