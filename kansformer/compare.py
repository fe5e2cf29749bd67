"""Trains KAN models and their MLP twin with one recipe and several seeds, and compares them.

    python -m kansformer.compare --data-path DIR --seeds 3

Reports a confidence interval for the difference of each KAN from the MLP. With the same seed, all
arms see the same split, batches and augmented pictures, so accuracies are compared in pairs. Other
flags are those of train.py and apply to all arms.
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
from kansformer.train.configure import configure
from kansformer.train.distributed import discard
from kansformer.words import command, number
from models.vit_model import FFNS

BASELINE = "mlp"
CONFIDENCE = 0.95
LABEL_BOX = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}  # legible on top of lines


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
    flags = vars(parser.parse_args())
    seeds, arms = flags.pop("seeds"), tuple(dict.fromkeys(flags.pop("arms")))
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    if BASELINE not in arms or len(arms) < 2:
        raise UserError("--arms must name mlp, the baseline, and at least one more")
    if "ffn" in flags:
        raise UserError("--ffn is chosen by --arms; leave it out")
    folder, runs = run_all(flags, arms, seeds)
    rows = summarize(runs)
    table = as_markdown(rows, runs)
    write_json(folder / "compare.json", {"rows": rows, "runs": runs})
    write_bytes(folder / "compare.md", table.encode())
    write_bytes(folder / "compare.png", draw(runs))
    print(table)
    print(f"written to {folder}: compare.json, compare.md and compare.png")


def run_all(
    flags: dict[str, Any], arms: Sequence[str], seeds: int
) -> tuple[Path, list[dict[str, Any]]]:
    """Trains every arm with every seed, each run in a subfolder.

    With --resume, interrupted runs are continued, and finished ones are only evaluated again.

    Args:
        flags: the fields of `TrainConfig` that were given.
        seeds: runs of each arm; the first one has --seed, the others count up from it.

    Returns:
        The folder of the comparison, and one record per run: arm, seed, accuracy in percent, and
        the contents of its summary.json.

    Raises:
        UserError: settings or data that cannot be used; with --resume, those of other runs.
    """
    first_seed = flags.pop("seed", 0)
    overwrite, resume = flags.pop("overwrite", False), flags.pop("resume", False)
    output = flags.pop("output", None)
    flags.setdefault("report", False)  # nobody reads one per run
    if not flags.get("weights") and "kan_hidden" not in flags:
        flags.setdefault("match", "params")
    runs: list[dict[str, Any]] = []
    folder = None
    for seed in range(first_seed, first_seed + seeds):
        for arm in arms:
            arm_flags = {**flags, "ffn": arm, "seed": seed}
            if arm == BASELINE:  # its width is the one that the others are matched to
                arm_flags["match"] = "none"
                arm_flags.pop("kan_hidden", None)
            log = print if not runs else discard  # the data's warnings are the same for all runs
            config, data = configure(arm_flags, log)
            folder = Path(output or Path("weights") / f"{data.name}-compare")
            run_folder = folder / f"{arm}-seed{seed}"
            has_state = (run_folder / "last.pt").is_file()
            settings = {
                **config.to_dict(),
                "output": str(run_folder),
                "overwrite": overwrite or (resume and not has_state),
                "resume": resume and has_state,
            }
            print(f"\n{arm}, seed {seed}")
            summary = train(TrainConfig(**settings), data)
            runs.append({"arm": arm, "seed": seed, "accuracy": accuracy(summary), **summary})
    assert folder is not None
    return folder, runs


def accuracy(summary: dict[str, Any]) -> float:
    """Test accuracy in percent, or the best validation accuracy if there is no test set."""
    return float(summary.get("test_acc1", summary["val_acc1"]))


def summarize(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Statistics of each arm over its seeds, one row per arm.

    Args:
        runs: records with at least "arm", "seed", "accuracy" in percent, "parameters",
            "flops_per_image" and "seconds".

    Returns:
        For each arm the mean accuracy, its standard deviation ("spread"; None with one seed), the
        mean paired "difference" from the MLP, and that difference's confidence "interval" (see
        `paired_interval`; None for the MLP itself).
    """
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], []).append(run)
    baseline = {run["seed"]: run["accuracy"] for run in by_arm[BASELINE]}
    rows = []
    for arm, arm_runs in by_arm.items():
        values = [run["accuracy"] for run in arm_runs]
        differences = [run["accuracy"] - baseline[run["seed"]] for run in arm_runs]
        rows.append({
            "arm": arm,
            "n": len(values),
            "mean": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "difference": float(np.mean(differences)),
            "interval": None if arm == BASELINE else paired_interval(differences),
            "parameters": arm_runs[0]["parameters"],
            "flops_per_image": arm_runs[0]["flops_per_image"],
            "seconds": float(np.mean([run["seconds"] for run in arm_runs])),
        })  # fmt: skip
    return rows


def paired_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Confidence interval for the mean of paired differences, by Student's t distribution.

    None for fewer than two differences.
    """
    if len(differences) < 2:
        return None
    from scipy import stats

    n, mean = len(differences), float(np.mean(differences))
    standard_error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * standard_error
    return mean - margin, mean + margin


def as_markdown(rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown, under a line on data and training, and above one on the intervals."""
    run = runs[0]
    kind = "test" if "test_acc1" in run else "best validation"
    pictures = run["pictures"]["test"] if "test_acc1" in run else run["pictures"]["val"]
    lines = [
        f"{run['data']}: {kind} accuracy in %, {number(pictures, 'picture')},"
        f" {number(run['epochs'], 'epoch')}, on {run['device']}",
        "",
        "| blocks | n | mean | spread | difference from mlp | parameters | MFLOPs | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = "" if row["spread"] is None else f"{row['spread']:.2f}"
        difference = difference_as_text(row["difference"], row["interval"])
        difference = "" if row["arm"] == BASELINE else difference
        lines.append(
            f"| {row['arm']} | {row['n']} | {row['mean']:.2f} | {spread} | {difference} |"
            f" {row['parameters']:,} | {row['flops_per_image'] / 1e6:.1f} | {row['seconds']:.0f} |"
        )
    if not any(row["interval"] for row in rows):
        note = "With one seed there is no confidence interval."
        return "\n".join([*lines, "", note, ""])
    note = (
        f"Spread is the standard deviation over seeds. In parentheses: {CONFIDENCE:.0%} confidence"
        " interval for the mean paired difference across seeds; where it contains zero, these runs"
        " do not distinguish the two."
    )
    return "\n".join([*lines, "", note, ""])


def difference_as_text(mean: float, interval: tuple[float, float] | None) -> str:
    """A mean difference, with its confidence interval in parentheses if there is one."""
    if interval is None:
        return f"{mean:+.2f}"
    low, high = interval
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def draw(runs: Sequence[dict[str, Any]]) -> bytes:
    """Plots accuracies by arm, with lines between runs of the same seed; returns a PNG."""
    from io import BytesIO

    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(run["arm"] for run in runs))
    figure = Figure(figsize=(1.8 * len(arms) + 1.6, 4), layout="constrained")
    axes = figure.subplots()
    for seed in dict.fromkeys(run["seed"] for run in runs):
        by_arm = {run["arm"]: run["accuracy"] for run in runs if run["seed"] == seed}
        ticks = [i for i, arm in enumerate(arms) if arm in by_arm]
        axes.plot(ticks, [by_arm[arms[i]] for i in ticks], "o-", color="0.7", ms=4, lw=0.8)
    for i, arm in enumerate(arms):
        mean = np.mean([run["accuracy"] for run in runs if run["arm"] == arm])
        axes.plot([i - 0.2, i + 0.2], [mean, mean], color=f"C{i}", lw=3)
        axes.annotate(f"{mean:.2f}", (i + 0.24, mean), va="center", fontsize=9, bbox=LABEL_BOX)
    axes.set_xticks(range(len(arms)), arms)
    axes.set_xlim(-0.5, len(arms) - 0.3)
    kind = "test" if "test_acc1" in runs[0] else "validation"
    axes.set(ylabel=f"{kind} accuracy (%)")
    axes.set_title("dots: runs; lines: same seed; bars: means", fontsize=9)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


if __name__ == "__main__":
    sys.exit(run_command(main))
