"""Trains KAN models and their MLP twin with one recipe and several seeds, and compares them.

    python -m kansformer.compare --data-path DIR --seeds 3

Reports a confidence interval for the difference of each KAN from the MLP, and which difference the
runs could have detected. With the same seed, all arms see the same split, batches and augmented
pictures, so accuracies are compared in pairs. Other flags are those of train.py and apply to all
arms.
"""

import argparse
import os
import sys

from kansformer.compare.finished import size_of
from kansformer.compare.report import as_markdown, draw, noise_of
from kansformer.compare.runs import run_all
from kansformer.compare.statistics import BASELINE, summarize
from kansformer.errors import UserError, run_command
from kansformer.files import write_bytes, write_json
from kansformer.train.config import add_flags
from kansformer.words import command
from models.vit_model import FFNS


def main() -> None:
    """Trains all arms with all seeds, then prints the table and writes it with the plot."""
    parser = argparse.ArgumentParser(
        prog=command("compare"),
        description="Trains KAN models and their MLP twin and compares them.",
    )
    add_flags(parser)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default 3)")
    parser.add_argument(
        "--arms", nargs="+", default=["kan", "group-kan", "mlp"], choices=FFNS,
        help="feed-forward blocks to compare (default all; mlp is the baseline)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-weights", action=argparse.BooleanOptionalAction, default=False,
        help="keep the weights and the last state of every run (default: only its figures)",
    )  # fmt: skip
    flags = vars(parser.parse_args())
    seeds, arms = flags.pop("seeds"), tuple(dict.fromkeys(flags.pop("arms")))
    keep_weights = flags.pop("keep_weights")
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    if BASELINE not in arms or len(arms) < 2:
        raise UserError("--arms must name mlp, the baseline, and at least one more")
    if "ffn" in flags:
        raise UserError("--ffn is chosen by --arms; leave it out")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("a comparison runs in one process; start it without torchrun")
    if flags.get("tune") == "splines":
        raise UserError("--tune splines leaves the MLP nothing to train; give --tune splines,head")
    folder, runs = run_all(flags, arms, seeds, keep_weights)
    rows = summarize(runs)
    table = as_markdown(rows, runs)
    results = {"rows": rows, "pictures": noise_of(rows, runs), "runs": runs}
    write_json(folder / "compare.json", results)
    write_bytes(folder / "compare.md", table.encode())
    write_bytes(folder / "compare.png", draw(runs))
    print(f"\n{table}")
    size = size_of(folder) / 1e6
    print(f"written to {folder}: compare.json, compare.md and compare.png; {size:,.1f} MB in all")


if __name__ == "__main__":
    sys.exit(run_command(main))
