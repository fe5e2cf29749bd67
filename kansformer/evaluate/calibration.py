"""Whether probabilities say how often a model is right, and one number that makes them do so."""

from dataclasses import dataclass

import numpy as np

from kansformer.errors import JobFailed
from kansformer.words import number

BINS = 15
LIMITS = (1e-3, 1e4)  # of a temperature


@dataclass(frozen=True)
class Reliability:
    """Predictions in equal intervals of their confidence; empty intervals are left out.

    Attributes:
        confidence: (bins,) mean probability of the predicted class.
        accuracy: (bins,) share of right predictions.
        count: (bins,) predictions.
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
    right = probabilities.argmax(axis=1) == labels
    accuracy, mean = calibration_curve(right, confidence, pos_label=True, n_bins=bins)
    # the same intervals as calibration_curve's, which does not tell how many are in each
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    count = np.bincount(place, minlength=bins)
    return Reliability(mean, accuracy, count[count > 0])


def rescaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, classes) of the same logits, divided by a temperature."""
    from scipy.special import softmax

    return softmax(_logits(probabilities) / temperature, axis=1)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood (Guo et al., 2017).

    The likelihood is concave in 1 / temperature, so there is one best.

    Args:
        labels: (N,).
        probabilities: (N, classes), at temperature 1.

    Raises:
        JobFailed: there is none: for predictions that are all right, or no better than chance,
            a more extreme temperature always fits better.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    right = probabilities.argmax(axis=1) == labels
    logits, rows = _logits(probabilities), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits * np.exp(-log_temperature), axis=1)
        return -float(scaled[rows, labels].mean())

    low, high = np.log(LIMITS)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x
    if right.all() or high - best < 0.01:
        cause = "all right" if right.all() else "no better than chance"
        raise JobFailed(
            f"no temperature can be fitted: the predictions on"
            f" {number(len(labels), 'validation picture')} are {cause}; the weights file is left"
            " as it was"
        )
    return float(np.exp(best))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits up to a constant for each row; what has become zero counts as the least number."""
    return np.log(probabilities.clip(min=np.finfo(np.float64).tiny))
