"""The statistics of a comparison: means, paired differences, and what could have been detected."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BASELINE = "mlp"
CONFIDENCE = 0.95  # of the intervals; the significance level of the test is the rest
POWER = 0.8  # probability of detecting a difference
SMALL_DIFFERENCE = 0.5  # percentage points, for which the number of seeds is stated
MOST_SEEDS = 10_000  # beyond which the number of seeds is not stated
EQUAL = 1e-9  # percentage points; differences whose spread is below are equal up to rounding
# noncentrality beyond which the test sees the opposite difference with a probability below 1e-8,
# for which scipy may return NaN
ONE_SIDED = 5.0
LARGEST_EFFECT = 20.0  # which two pairs detect with a power of 0.97


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
        mean paired "difference" from the MLP, that difference's confidence "interval" (see
        `paired_interval`), and the "sensitivity" to differences (see `sensitivity`). The last two
        are None for the MLP itself.
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
            "sensitivity": None if arm == BASELINE else sensitivity(differences),
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


def sensitivity(differences: Sequence[float]) -> dict[str, Any] | None:
    """Which mean difference runs could have detected, and how many seeds others would take.

    Both are for the two-sided paired t test and take the spread of the given differences for the
    true one.

    Args:
        differences: paired, in percentage points.

    Returns:
        "detectable", the smallest mean difference that is detected with probability `POWER`; and
        "seeds", for `SMALL_DIFFERENCE` and for the observed mean "difference", the number of
        "seeds" that detects it (None above `MOST_SEEDS`; no entry for an observed 0). None for
        fewer than two differences, and where all are equal: their spread then tells nothing.
    """
    if len(differences) < 2:
        return None
    spread = float(np.std(differences, ddof=1))
    if spread < EQUAL:
        return None
    sizes = [SMALL_DIFFERENCE]
    observed = abs(float(np.mean(differences)))
    if observed > EQUAL:
        sizes.append(observed)
    return {
        "detectable": spread * detectable_effect(len(differences)),
        "seeds": [{"difference": d, "seeds": seeds_needed(d / spread)} for d in sizes],
    }


def power_of_paired_t_test(effect: float, n: int) -> float:
    """Probability that the two-sided paired t test at level 1 - `CONFIDENCE` sees a difference.

    The test statistic has a noncentral t distribution with n - 1 degrees of freedom and
    noncentrality sqrt(n) * effect (Chow, Shao, Wang and Lokhnygina, Sample Size Calculations in
    Clinical Research, 3rd edition, 2017, section 3.1).

    Args:
        effect: the true mean difference, in standard deviations of the differences.
        n: number of pairs, at least 2.
    """
    from scipy import stats

    noncentrality = math.sqrt(n) * abs(effect)
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    power = float(stats.nct.sf(critical, n - 1, noncentrality))
    if noncentrality < ONE_SIDED:
        power += float(stats.nct.cdf(-critical, n - 1, noncentrality))
    return power


def detectable_effect(n: int) -> float:
    """The smallest effect that n pairs detect with probability `POWER`.

    Returns:
        A mean difference in standard deviations of the differences.
    """
    from scipy.optimize import brentq

    def missing(effect: float) -> float:
        return power_of_paired_t_test(effect, n) - POWER

    return float(brentq(missing, 0, LARGEST_EFFECT))


def seeds_needed(effect: float) -> int | None:
    """The least number of pairs that detects an effect with probability `POWER`.

    Args:
        effect: the true mean difference, in standard deviations of the differences.

    Returns:
        At least 2; None if it is above `MOST_SEEDS`.
    """
    low, high = 1, 2  # the power increases with the number of pairs
    while power_of_paired_t_test(effect, high) < POWER:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if power_of_paired_t_test(effect, middle) < POWER:
            low = middle
        else:
            high = middle
    return high if high <= MOST_SEEDS else None


def uncertainty_of_spread(n: int) -> tuple[float, float]:
    """Between which multiples of a standard deviation of n values the true one lies.

    The confidence interval for normal values, by the chi-squared distribution.

    Args:
        n: at least 2.
    """
    from scipy import stats

    low, high = stats.chi2.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], n - 1)
    return math.sqrt((n - 1) / high), math.sqrt((n - 1) / low)


def picture_noise(accuracy: float, pictures: int) -> dict[str, Any]:
    """How finely an accuracy is measured by a number of pictures, in percentage points.

    Args:
        accuracy: in percent.

    Returns:
        The "accuracy", the number of "pictures", what "one_picture" counts, and the binomial
        "standard_error" of the accuracy for the choice of the pictures, sqrt(p (1 - p) / n); None
        at 0 and 100 %, where that is 0.
    """
    share = accuracy / 100
    error = 100 * math.sqrt(max(share * (1 - share), 0) / pictures)
    return {
        "accuracy": accuracy,
        "pictures": pictures,
        "one_picture": 100 / pictures,
        "standard_error": error if error > EQUAL else None,
    }
