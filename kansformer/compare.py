"""Trains twins, KAN against MLP, under one recipe, and says which was better and how surely.

    python -m kansformer.compare --data-path DIR --seeds 3

Every arm sees the same splits, batches and augmented pictures, seed by seed, so its accuracies are
compared in pairs. Other flags are those of train.py and hold for all arms.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kansformer.errors import UserError, run_command
from kansformer.files import write_bytes, write_json
from kansformer.train import TrainConfig, train
from kansformer.train.config import add_flags
from kansformer.train.distributed import ignore
from kansformer.train.recipes import configure
from kansformer.words import number
from models.vit_model import FFNS

BASELINE = "mlp"
CONFIDENCE = 0.95
LABEL = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}  # readable on the lines


def main() -> None:
    """Trains what is not there yet, then prints and writes the table and the plot."""
    parser = argparse.ArgumentParser(
        prog="python -m kansformer.compare",
        description="Trains KAN models and their MLP twin and compares them.",
    )
    add_flags(parser)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default 3)")
    parser.add_argument(
        "--arms", nargs="+", default=["kan", "group-kan", "mlp"], choices=FFNS,
        help="feed-forward blocks to compare (default all; mlp is what the others are held to)",
    )  # fmt: skip
    flags = vars(parser.parse_args())
    seeds, arms = flags.pop("seeds"), tuple(dict.fromkeys(flags.pop("arms")))
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    if BASELINE not in arms or len(arms) < 2:
        raise UserError("--arms must name mlp, which the others are held to, and one more")
    if "ffn" in flags:
        raise UserError("--ffn is chosen by --arms here; leave it out")
    folder, runs = run_all(flags, arms, seeds)
    rows = summarise(runs)
    table = as_markdown(rows, runs)
    write_json(folder / "compare.json", {"rows": rows, "runs": runs})
    write_bytes(folder / "compare.md", table.encode())
    write_bytes(folder / "compare.png", draw(runs))
    print(table)
    print(f"written: {folder / 'compare.json'}, compare.md and compare.png beside it")


def run_all(
    flags: dict[str, Any], arms: Sequence[str], seeds: int
) -> tuple[Path, list[dict[str, Any]]]:
    """Trains every arm with every seed, each into a folder of its own.

    With --resume, a run that was cut off goes on, and one that is finished is evaluated again.

    Returns:
        The folder of the comparison, and one record per run: arm, seed and its summary.json.

    Raises:
        UserError: with --resume, settings or pictures that are not those of the runs.
    """
    first = flags.pop("seed", 0)
    overwrite, resume = flags.pop("overwrite", False), flags.pop("resume", False)
    output = flags.pop("output", None)
    flags.setdefault("report", False)  # a page for every run is more than anyone reads
    if not flags.get("weights") and "kan_hidden" not in flags:
        flags.setdefault("match", "params")
    runs: list[dict[str, Any]] = []
    folder = None
    for seed in range(first, first + seeds):
        for arm in arms:
            own = dict(flags)
            if arm == BASELINE:  # what it is held to has its own width
                own |= {"match": "none"}
                own.pop("kan_hidden", None)
            say = print if not runs else ignore  # once is enough
            config, data = configure({**own, "ffn": arm, "seed": seed}, say)
            folder = Path(output or Path("weights") / f"{data.name}-compare")
            place = folder / f"{arm}-seed{seed}"
            begun = (place / "last.pt").is_file()
            settings = {
                **config.to_dict(),
                "output": str(place),
                "overwrite": overwrite or (resume and not begun),
                "resume": resume and begun,
            }
            print(f"\n{arm}, seed {seed}")
            summary = train(TrainConfig(**settings), data)
            runs.append({"arm": arm, "seed": seed, "accuracy": accuracy(summary), **summary})
    assert folder is not None
    return folder, runs


def accuracy(summary: dict[str, Any]) -> float:
    """Test accuracy in percent, or where there is no test set the best in validation."""
    return float(summary.get("test_acc1", summary["val_acc1"]))


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm: mean, spread, and the interval of its difference from the MLP.

    The interval is Student's for paired differences, one per seed; None with a single seed.
    """
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], []).append(run)
    baseline = {run["seed"]: run["accuracy"] for run in by_arm[BASELINE]}
    rows = []
    for arm, own in by_arm.items():
        values = [run["accuracy"] for run in own]
        differences = [run["accuracy"] - baseline[run["seed"]] for run in own]
        rows.append({
            "arm": arm,
            "n": len(values),
            "mean": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "difference": float(np.mean(differences)),
            "interval": None if arm == BASELINE else paired_interval(differences),
            "parameters": own[0]["parameters"],
            "flops_per_image": own[0]["flops_per_image"],
            "seconds": float(np.mean([run["seconds"] for run in own])),
        })  # fmt: skip
    return rows


def paired_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval for the mean of paired differences; None for fewer than two."""
    if len(differences) < 2:
        return None
    from scipy import stats

    n, mean = len(differences), float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return mean - reach, mean + reach


def as_markdown(rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> str:
    """The table, with what it is about above and how to read it below."""
    run = runs[0]
    kind = "test" if "test_acc1" in run else "best validation"
    pictures = run["pictures"]["test"] if "test_acc1" in run else run["pictures"]["val"]
    lines = [
        f"{run['data']}: {kind} accuracy in %, {number(pictures, 'picture')},"
        f" {number(run['epochs'], 'epoch')}, on {run['device']}",
        "",
        "| blocks | n | mean | spread | against mlp | parameters | MFLOPs | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = "" if row["spread"] is None else f"{row['spread']:.2f}"
        against = difference_as_text(row["difference"], row["interval"])
        against = "" if row["arm"] == BASELINE else against
        lines.append(
            f"| {row['arm']} | {row['n']} | {row['mean']:.2f} | {spread} | {against} |"
            f" {row['parameters']:,} | {row['flops_per_image'] / 1e6:.1f} | {row['seconds']:.0f} |"
        )
    if not any(row["interval"] for row in rows):
        return "\n".join([*lines, "", "One seed does not tell how sure a difference is.", ""])
    note = (
        f"In brackets the {CONFIDENCE:.0%} interval of the difference in pairs, seed by seed. Where"
        " it holds zero, the runs do not tell the arms apart."
    )
    return "\n".join([*lines, "", note, ""])


def difference_as_text(mean: float, interval: tuple[float, float] | None) -> str:
    """A mean difference, with its interval in brackets if there is one."""
    if interval is None:
        return f"{mean:+.2f}"
    low, high = interval
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def draw(runs: Sequence[dict[str, Any]]) -> bytes:
    """Accuracies by arm as a PNG, runs of one seed joined by a line."""
    from io import BytesIO

    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(run["arm"] for run in runs))
    figure = Figure(figsize=(1.8 * len(arms) + 1.6, 4), layout="constrained")
    axes = figure.subplots()
    for seed in dict.fromkeys(run["seed"] for run in runs):
        own = {run["arm"]: run["accuracy"] for run in runs if run["seed"] == seed}
        places = [i for i, arm in enumerate(arms) if arm in own]
        axes.plot(places, [own[arms[i]] for i in places], "o-", color="0.7", ms=4, lw=0.8)
    for i, arm in enumerate(arms):
        mean = np.mean([run["accuracy"] for run in runs if run["arm"] == arm])
        axes.plot([i - 0.2, i + 0.2], [mean, mean], color=f"C{i}", lw=3)
        axes.annotate(f"{mean:.2f}", (i + 0.24, mean), va="center", fontsize=9, bbox=LABEL)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_xlim(-0.5, len(arms) - 0.3)
    kind = "test" if "test_acc1" in runs[0] else "validation"
    axes.set(ylabel=f"{kind} accuracy (%)")
    axes.set_title("dots: runs, joined by seed; bars: means", fontsize=9)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    packed = BytesIO()
    figure.savefig(packed, format="png", dpi=120)
    return packed.getvalue()


if __name__ == "__main__":
    sys.exit(run_command(main))
