"""Metrics equal scikit-learn's and their definitions; the fitted temperature is optimal."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics

from kansformer.errors import JobFailed
from kansformer.evaluate import best_epoch
from kansformer.evaluate.calibration import fit_temperature, reliability, rescaled
from kansformer.evaluate.plots import (
    confusion_in_words,
    draw_classes,
    draw_confusion,
    draw_history,
    draw_reliability,
    history_in_words,
    pooled_shares,
)
from kansformer.evaluate.report import as_text, figures
from tests.drawn import assert_drawn_within_bounds


def predictions(classes: int, count: int = 300, sharpness: float = 1.0) -> tuple[np.ndarray, ...]:
    """Labels (N,), without the last class, and probabilities that are sometimes correct."""
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes - 1, count)
    logits = random.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1.5
    return labels, rescaled(np.exp(sharpness * logits), 1.0)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_figures_are_scikit_learns(classes: int) -> None:
    labels, probabilities = predictions(classes)
    if classes == 2:  # both occur, or scikit-learn's balanced accuracy warns
        labels[:100] = 1
    names = [f"class {index}" for index in range(classes)]
    predicted = probabilities.argmax(1)
    report = figures(labels, probabilities, names)
    assert report["accuracy"] == pytest.approx(np.mean(predicted == labels))
    assert report["nll"] == pytest.approx(
        F.cross_entropy(torch.tensor(probabilities).log(), torch.tensor(labels)).item()
    )
    present = [name for index, name in enumerate(names) if index in labels]
    expected = metrics.classification_report(
        labels, predicted, labels=range(classes), target_names=names, output_dict=True,
        zero_division=0,
    )  # fmt: skip
    for row in report["per_class"]:
        expected_row = expected[row["class"]]
        assert row["support"] == expected_row["support"]
        if row["class"] in present:
            for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                assert row[name] == pytest.approx(expected_row[key])
        else:
            assert row["recall"] is None  # 0 / 0
    assert report["balanced_accuracy"] == pytest.approx(
        np.mean([expected[name]["recall"] for name in present])
    )
    if classes > 5:
        best = np.argsort(probabilities, axis=1)[:, -5:]
        assert report["top5_accuracy"] == pytest.approx(np.mean((best == labels[:, None]).any(1)))
    else:
        assert report["top5_accuracy"] is None
    counts = np.zeros((classes, classes), dtype=int)
    for row, column in zip(labels, predicted, strict=True):
        counts[row, column] += 1
    assert report["confusion"] == counts.tolist()
    np.fill_diagonal(counts, 0)
    assert report["most_confused"][0]["count"] == counts.max()
    assert sum(pair["count"] for pair in report["most_confused"]) <= counts.sum()


def test_the_interval_is_wilsons() -> None:
    labels = np.zeros(50, dtype=int)
    probabilities = np.tile([0.9, 0.1], (50, 1))
    probabilities[:3] = [0.2, 0.8]
    report = figures(labels, probabilities, ["a", "b"])
    p, n, z = 47 / 50, 50, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert report["accuracy_interval"] == pytest.approx([middle - reach, middle + reach])


def test_ece_equals_a_loop_over_intervals() -> None:
    labels, probabilities = predictions(4, 500)
    probabilities[0] = [1, 0, 0, 0]
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    curve = reliability(labels, probabilities)
    assert curve.expected_calibration_error == pytest.approx(expected)
    assert curve.count.sum() == 500


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 6.0])
def test_the_temperature_equals_the_one_fitted_by_torch(sharpness: float) -> None:
    labels, probabilities = predictions(5, sharpness=sharpness)
    logits = torch.tensor(probabilities).log()
    slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits * slope.exp(), torch.tensor(labels))
        value.backward()
        return value

    optimizer.step(loss)
    temperature = fit_temperature(labels, probabilities)
    assert temperature == pytest.approx((-slope).exp().item(), rel=1e-4)
    after = rescaled(probabilities, temperature)
    np.testing.assert_allclose(after, (logits / temperature).softmax(1).numpy(), atol=1e-12)
    assert metrics.log_loss(labels, after, labels=range(5)) <= metrics.log_loss(
        labels, probabilities, labels=range(5)
    )
    assert fit_temperature(labels, after) == pytest.approx(1, rel=1e-4)


def test_without_an_optimal_temperature_the_fit_fails() -> None:
    probabilities = np.array([[0.6, 0.4], [0.3, 0.7]] * 20)
    with pytest.raises(JobFailed, match="all correct"):
        fit_temperature(np.array([0, 1] * 20), probabilities)
    with pytest.raises(JobFailed, match="no better than chance"):
        fit_temperature(np.array([1, 0] * 20), probabilities)


def test_certain_mistakes_stay_finite() -> None:
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    report = figures(np.array([0, 1, 1]), probabilities, ["a", "b"])
    assert np.isfinite(report["nll"])
    assert np.isfinite(fit_temperature(np.array([0, 1, 1]), probabilities))


def test_the_printed_table_of_many_classes_is_short() -> None:
    labels, probabilities = predictions(80, 400)
    names = [f"class {index}" for index in range(80)]
    report = {
        **figures(labels, probabilities, names), "data": "x", "split": "test", "pictures": 400,
        "note": "", "pictures_per_second": 1.0, "device": "cpu", "threads": 1, "batch_size": 32,
    }  # fmt: skip
    text = as_text(report)
    assert "the 50 classes with the lowest F1" in text
    assert len(text.splitlines()) < 80


@pytest.mark.parametrize("narrow", [False, True], ids=["file", "page"])
@pytest.mark.parametrize("classes", [1, 2, 10, 25, 40, 100, 1000])
def test_a_confusion_matrix_stays_in_its_box(classes: int, narrow: bool) -> None:
    """With any number of classes and any names, no text is cut or overlaps."""
    labels = np.arange(3 * classes) % classes
    predicted = np.where(np.arange(len(labels)) % 3, labels, labels[::-1])
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    names = [f"$a long_name {{ {index} ".ljust(60, "x") for index in range(classes)]
    figure = draw_confusion(confusion, names, narrow=narrow)
    assert_drawn_within_bounds(figure)
    assert max(figure.get_size_inches()) <= (5 if narrow else 12)
    matrix, bar = (axes.get_window_extent() for axes in figure.axes)
    assert bar.x0 > matrix.x1
    assert matrix.y0 <= bar.y0 < bar.y1 <= matrix.y1
    assert min(matrix.width, matrix.height) > 0.4 * figure.bbox.width
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert all(not a.overlaps(b) for a, b in pairwise(boxes))
        assert min(label.get_fontsize() for label in axis.get_ticklabels()) >= 6


@pytest.mark.parametrize("classes", [3, 40, 1000])
def test_bars_of_classes_stay_in_their_box(classes: int) -> None:
    labels, probabilities = predictions(classes, 4 * classes)
    names = [f"$a long_name {{ {index} ".ljust(60, "x") for index in range(classes)]
    figure = draw_classes(figures(labels, probabilities, names)["per_class"])
    assert_drawn_within_bounds(figure)
    assert max(figure.get_size_inches()) <= 10
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(set(shown)) == len(shown) == min(classes, 25)


def test_a_long_title_stays_in_its_box() -> None:
    labels, probabilities = predictions(3, 300)
    figure = draw_reliability(reliability(labels, probabilities), "$a_long title {^ " * 9)
    assert_drawn_within_bounds(figure)


@pytest.mark.parametrize("classes", [1, 100, 101, 255, 1000])
def test_a_cell_shows_the_largest_share_of_its_classes(classes: int) -> None:
    confusion = np.random.default_rng(classes).poisson(0.01, (classes, classes))
    shares, together = pooled_shares(confusion)
    assert len(shares) <= 100
    assert together == (classes + 99) // 100
    fine = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
    expected = np.zeros_like(shares)
    for true, predicted in np.argwhere(confusion):
        cell = true // together, predicted // together
        expected[cell] = max(expected[cell], fine[true, predicted])
    assert np.array_equal(shares, expected)


def test_an_undefined_precision_is_not_called_zero() -> None:
    row = {"class": "a", "precision": None, "recall": 0.0, "f1": 0.0, "support": 3}
    texts = [text.get_text() for text in draw_classes([row]).axes[0].texts]
    assert texts == ["0", "–"]


def test_one_epoch_is_drawn_as_one_epoch() -> None:
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 0.9, "val_acc1": 50.0, "lr": 1e-6}
    figure = draw_history([row], 1)
    assert_drawn_within_bounds(figure)
    ticks = figure.axes[2].xaxis
    low, high = figure.axes[2].get_xlim()
    assert [tick for tick in ticks.get_majorticklocs() if low <= tick <= high] == [1]
    assert figure.axes[2].lines[0].get_marker() == "o"
    assert history_in_words([row]).startswith("Curves over 1 epoch:")


def test_texts_name_the_true_class_and_use_the_singular() -> None:
    report = figures(np.array([0]), np.array([[0.2, 0.8]]), ["a\nb", "c"])
    text = as_text({
        **report, "data": "x", "split": "test", "pictures": 1, "note": "", "device": "cpu",
        "pictures_per_second": 1.0, "threads": 1, "batch_size": 32,
    })  # fmt: skip
    assert "1 picture, 2 classes" in text
    assert ", 1 thread," in text
    assert "1  true a\N{REPLACEMENT CHARACTER}b, predicted c (100.00 % of a" in text
    assert "true a\nb, predicted c: 1" in confusion_in_words(report)


def test_the_circle_marks_the_best_epoch() -> None:
    rows = [(50.0, 2.0), (90.0, 0.4), (90.0, 0.3), (90.0, 0.5), (80.0, 0.2)]
    history = [
        {"epoch": number, "train_loss": 1.0, "val_acc1": accuracy, "val_loss": loss, "lr": 0.1}
        for number, (accuracy, loss) in enumerate(rows, start=1)
    ]
    best = best_epoch(history, "acc1")["epoch"]
    assert best == 3
    title = draw_history(history, best).axes[1].get_title(loc="left")
    assert title == "best: 90.00 % in epoch 3"
    assert best_epoch(history, "loss")["epoch"] == 5
