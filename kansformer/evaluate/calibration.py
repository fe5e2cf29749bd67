"""Calibration: how well confidence matches accuracy, and the temperature that improves it."""

from dataclasses import dataclass

import numpy as np

from kansformer.errors import JobFailed
from kansformer.words import number

BINS = 15
LIMITS = (1e-3, 1e4)  # of a temperature


@dataclass(frozen=True)
class Reliability:
    """Predictions grouped into equal intervals of their confidence, without empty intervals.

    Attributes:
        confidence: (bins,) mean probability of the predicted class.
        accuracy: (bins,) share of correct predictions.
        count: (bins,) number of predictions.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean of |accuracy - confidence| over the intervals, weighted by their predictions."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> Reliability:
    """Accuracy by confidence (Guo et al., 2017, "On calibration of modern neural networks").

    Args:
        labels: (N,).
        probabilities: (N, classes).
    """
    from sklearn.calibration import calibration_curve

    confidence = probabilities.max(axis=1).clip(0, 1)
    correct = probabilities.argmax(axis=1) == labels
    accuracy, mean = calibration_curve(correct, confidence, pos_label=True, n_bins=bins)
    # the intervals of calibration_curve, which does not return the number of predictions in each
    bin_index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    count = np.bincount(bin_index, minlength=bins)
    return Reliability(mean, accuracy, count[count > 0])


def rescaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, classes) after division of the logits by a temperature."""
    from scipy.special import softmax

    return softmax(_logits(probabilities) / temperature, axis=1)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature that minimizes the negative log-likelihood (Guo et al., 2017).

    The log-likelihood is concave in 1 / temperature, so the optimum is unique.

    Args:
        labels: (N,).
        probabilities: (N, classes), at temperature 1.

    Raises:
        JobFailed: there is no optimum. If all predictions are correct, or no better than chance, a
            more extreme temperature always fits better.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    correct = probabilities.argmax(axis=1) == labels
    logits, rows = _logits(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits * np.exp(-log_temperature), axis=1)
        return -float(scaled[rows, labels].mean())

    low, high = np.log(LIMITS)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x
    if correct.all() or high - best < 0.01:
        cause = "all correct" if correct.all() else "no better than chance"
        raise JobFailed(
            f"no temperature can be fitted: the predictions on"
            f" {number(len(labels), 'validation picture')} are {cause}; the weights file is"
            " unchanged"
        )
    return float(np.exp(best))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits up to a constant per row; zeros count as the smallest positive number."""
    return np.log(probabilities.clip(min=np.finfo(np.float64).tiny))
