"""The results of a comparison as a table in Markdown and as a plot."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from kansformer.compare.statistics import (
    BASELINE,
    CONFIDENCE,
    MOST_SEEDS,
    POWER,
    picture_noise,
    uncertainty_of_spread,
)
from kansformer.words import number

LABEL_BOX = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}  # legible on top of lines


def is_tested(runs: Sequence[dict[str, Any]]) -> bool:
    """Whether the accuracies are those of a test set, not of the validation set."""
    return "test_acc1" in runs[0]


def noise_of(
    rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """`picture_noise` at the MLP's mean accuracy; None without the MLP."""
    pictures = runs[0]["pictures"]["test" if is_tested(runs) else "val"]
    means = [row["mean"] for row in rows if row["arm"] == BASELINE]
    return picture_noise(means[0], pictures) if means else None


def as_markdown(rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown, under a line on data and training, and above what it means."""
    run = runs[0]
    kind = "test" if is_tested(runs) else "best validation"
    pictures = run["pictures"]["test" if is_tested(runs) else "val"]
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
    lines += ["", *notes(rows)]
    if noise := noise_of(rows, runs):
        lines += ["", noise_as_text(noise, same_for_all=is_tested(runs))]
    return "\n".join([*lines, ""])


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines on the intervals, and on the differences that these runs could have detected."""
    if not any(row["interval"] for row in rows):
        return [
            "With one seed there is no confidence interval, and nothing can be said about which"
            " differences these runs could have detected."
        ]
    lines = [
        f"Spread is the standard deviation over seeds. In parentheses: {CONFIDENCE:.0%} confidence"
        " interval for the mean paired difference across seeds; where it contains zero, these runs"
        " do not distinguish the two.",
        "",
        *(f"- {sensitivity_as_text(row)}" for row in rows if row["interval"]),
    ]
    if any(row["sensitivity"] for row in rows):
        low, high = uncertainty_of_spread(rows[0]["n"])
        lines += [
            "",
            f"Detected means: by the two-sided paired t test at {1 - CONFIDENCE:.0%}, with a"
            f" probability (power) of {POWER:.0%}. This takes the spread of the"
            f" {rows[0]['n']} differences for the true one, which may be {low:.1f} to"
            f" {high:.1f} times as large.",
        ]
    return lines


def sensitivity_as_text(row: dict[str, Any]) -> str:
    """Which difference an arm's runs could have detected, and how many seeds others take."""
    result = row["sensitivity"]
    if result is None:
        return (
            f"{row['arm']}: the paired differences are all equal, so they do not tell what these"
            " runs could have detected."
        )
    small, *observed = result["seeds"]
    detectable = f"a difference of {result['detectable']:.2f} points"
    if result["detectable"] > 100:  # beyond which no accuracies differ
        detectable = "no difference below 100 points"
    text = (
        f"{row['arm']}: with {number(row['n'], 'seed')} these runs could have detected {detectable}"
        f" (power {POWER:.0%}); to detect {small['difference']:g} points takes"
        f" {seeds_as_text(small['seeds'])}"
    )
    for one in observed:
        text += (
            f", and a true difference of the observed {one['difference']:.2f} points"
            f" {seeds_as_text(one['seeds'])}"
        )
    return f"{text}."


def seeds_as_text(seeds: int | None) -> str:
    """A number of seeds that rests on an estimate; None if it is above `MOST_SEEDS`."""
    if seeds is None:
        return f"more than {number(MOST_SEEDS, 'seed')}"
    return f"about {number(seeds, 'seed')}"


def noise_as_text(noise: dict[str, Any], same_for_all: bool) -> str:
    """How finely these pictures measure an accuracy.

    Args:
        noise: from `picture_noise`.
        same_for_all: whether runs with all seeds are evaluated on the same pictures.
    """
    text = f"{number(noise['pictures'], 'picture')}: one is {noise['one_picture']:.2f} points."
    if noise["standard_error"] is None:
        return text
    text += (
        f" For other pictures of the kind, an accuracy of {noise['accuracy']:.2f} % has a standard"
        f" error of {noise['standard_error']:.2f} points (binomial)"
    )
    return f"{text}; the intervals over seeds do not include it." if same_for_all else f"{text}."


def difference_as_text(mean: float, interval: tuple[float, float] | None) -> str:
    """A mean difference, with its confidence interval in parentheses if there is one."""
    if interval is None:
        return f"{mean:+.2f}"
    low, high = interval
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def draw(runs: Sequence[dict[str, Any]]) -> bytes:
    """Plots accuracies by arm, with lines between runs of the same seed; returns a PNG."""
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
    kind = "test" if is_tested(runs) else "validation"
    axes.set(ylabel=f"{kind} accuracy (%)")
    axes.set_title("dots: runs; lines: same seed; bars: means", fontsize=9)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()
