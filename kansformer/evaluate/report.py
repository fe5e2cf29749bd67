"""Metrics of predictions, and their printed form."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kansformer.evaluate.calibration import BINS, reliability
from kansformer.figures import fit_to_show
from kansformer.words import number

CONFIDENCE = 0.95
PAIRS = 10  # most confused pairs in the report
ROWS = 50  # classes in the printed table


def figures(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """All metrics of predictions, in plain types; shares are between 0 and 1.

    Args:
        labels: (N,) true classes.
        probabilities: (N, classes).

    Returns:
        "accuracy" with its Wilson interval "accuracy_interval"; "top5_accuracy", None for five
        classes or fewer; "balanced_accuracy", the mean recall of the classes that occur; "nll", the
        mean negative log-likelihood in nats; "ece", the expected calibration error; "per_class",
        with None for undefined values (0 / 0); "confusion", whose rows are true classes; and
        "most_confused".
    """
    from scipy.stats import binomtest
    from sklearn import metrics

    every = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    correct = int((predicted == labels).sum())
    interval = binomtest(correct, len(labels)).proportion_ci(CONFIDENCE, method="wilson")
    top5 = None
    if len(every) > 5:
        top5 = float(metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=every))
    confusion = metrics.confusion_matrix(labels, predicted, labels=every)
    columns = metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    per_class = [
        {
            "class": name,
            "precision": _or_none(precision),
            "recall": _or_none(recall),
            "f1": _or_none(f1),
            "support": int(support),
        }
        for name, precision, recall, f1, support in zip(class_names, *columns, strict=True)
    ]
    present = np.unique(labels)
    recall = metrics.recall_score(labels, predicted, labels=present, average="macro")
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "accuracy_interval": [interval.low, interval.high],
        "interval_method": f"Wilson, {CONFIDENCE:.0%}",
        "top5_accuracy": top5,
        "balanced_accuracy": float(recall),
        "nll": float(metrics.log_loss(labels, probabilities, labels=every)),
        "ece": reliability(labels, probabilities).expected_calibration_error,
        "ece_bins": BINS,
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "most_confused": most_confused(confusion, class_names),
    }


def most_confused(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent pairs of a true class and a different predicted class.

    Args:
        confusion: (classes, classes) counts; rows are true classes.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    return [
        {
            "true": class_names[true],
            "predicted": class_names[predicted],
            "count": int(wrong[true, predicted]),
            "share": float(wrong[true, predicted] / confusion[true].sum()),
        }
        for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[true, predicted]
    ]


def as_text(report: dict[str, Any]) -> str:
    """The printed form of evaluation.json."""
    low, high = report["accuracy_interval"]
    lines = [
        f"{report['data']}, {report['split']}: {number(report['pictures'], 'picture')},"
        f" {number(len(report['per_class']), 'class')}"
    ]
    lines += [f"note: {report['note']}"] if report["note"] else []
    lines += [
        "",
        f"accuracy           {_percent(report['accuracy'])}"
        f"  ({report['interval_method']}: {_percent(low)} to {_percent(high)})",
    ]
    if report["top5_accuracy"] is not None:
        lines.append(f"top-5 accuracy     {_percent(report['top5_accuracy'])}")
    lines += [
        f"balanced accuracy  {_percent(report['balanced_accuracy'])}",
        f"NLL                {report['nll']:8.4f}  nats",
        f"ECE                {report['ece']:8.4f}  ({report['ece_bins']} bins)",
        f"speed              {report['pictures_per_second']:8.1f}  pictures/s on"
        f" {report['device']}, {number(report['threads'], 'thread')}, batches of"
        f" {report['batch_size']}",
    ]
    if fitted := report.get("calibrated"):
        lines += [
            "",
            f"temperature {report['temperature']:.4f}, fitted on"
            f" {number(fitted['pictures'], 'validation picture')}; before: temperature"
            f" {fitted['before']['temperature']:.4f}, NLL {fitted['before']['nll']:.4f}, ECE"
            f" {fitted['before']['ece']:.4f}",
        ]
    lines += ["", *_class_table(report["per_class"])]
    if report["most_confused"]:
        lines += ["", "most confused:"]
    for pair in report["most_confused"]:
        true, predicted = fit_to_show(pair["true"]), fit_to_show(pair["predicted"])
        lines.append(
            f"{pair['count']:6}  true {true}, predicted {predicted}"
            f" ({_percent(pair['share']).strip()} of {true})"
        )
    return "\n".join(lines)


def _class_table(rows: list[dict[str, Any]]) -> list[str]:
    """A line per class; of many classes, those with the lowest F1."""
    title = []
    if len(rows) > ROWS:
        title = [f"the {ROWS} classes with the lowest F1 (--json and --output give all):"]
        occur = [row for row in rows if row["f1"] is not None]
        rows = sorted(occur, key=lambda row: row["f1"])[:ROWS]
    names = [fit_to_show(row["class"]) for row in rows]
    width = max(map(len, ["class", *names]))
    lines = [f"{'class':{width}}  precision    recall        F1   support"]
    for class_name, row in zip(names, rows, strict=True):
        cells = (_percent(row[name]) for name in ("precision", "recall", "f1"))
        lines.append(f"{class_name:{width}} {' '.join(cells)} {row['support']:9}")
    return title + lines


def _percent(share: float | None) -> str:
    return f"{'-':>9}" if share is None else f"{100 * share:7.2f} %"


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
