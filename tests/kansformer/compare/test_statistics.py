"""The figures are those of scipy's paired t test, and those of many simulated comparisons."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from kansformer.compare.statistics import (
    detectable_effect,
    picture_noise,
    power_of_paired_t_test,
    seeds_needed,
    sensitivity,
    summarize,
    uncertainty_of_spread,
)


def run(arm: str, seed: int, accuracy: float) -> dict[str, object]:
    return {"arm": arm, "seed": seed, "accuracy": accuracy, "parameters": 10,
            "flops_per_image": 20, "seconds": 3.0}  # fmt: skip


def test_intervals_are_scipys_for_pairs() -> None:
    kan, mlp = [91.0, 92.5, 90.0, 93.0], [90.0, 92.0, 90.5, 91.0]
    runs = [run("kan", s, v) for s, v in enumerate(kan)]
    runs += [run("mlp", s, v) for s, v in reversed(list(enumerate(mlp)))]  # paired by seed
    first, second = summarize(runs)
    expected = stats.ttest_rel(kan, mlp).confidence_interval(0.95)
    assert first["interval"] == pytest.approx((expected.low, expected.high))
    assert first["difference"] == pytest.approx(0.75)
    assert first["spread"] == pytest.approx(stats.tstd(kan))
    assert second["interval"] is None
    assert second["sensitivity"] is None
    alone = summarize(runs[:1] + runs[-1:])[0]
    assert alone["interval"] is None
    assert alone["sensitivity"] is None


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("effect", [0.0, 0.4, 1.5])
def test_the_power_is_how_often_scipys_test_rejects(n: int, effect: float) -> None:
    repeats = 40_000
    random = np.random.default_rng(0)
    mlp = random.normal(80, 3, (repeats, n))
    kan = mlp + random.normal(effect, 1, (repeats, n))
    rejected = float(np.mean(stats.ttest_rel(kan, mlp, axis=1).pvalue < 0.05))
    power = power_of_paired_t_test(effect, n)
    assert power_of_paired_t_test(-effect, n) == power
    error = math.sqrt(power * (1 - power) / repeats)
    assert abs(rejected - power) < 4 * error


@pytest.mark.parametrize("n", [2, 3, 4, 10, 300])
def test_the_detectable_difference_has_the_stated_power(n: int) -> None:
    effect = detectable_effect(n)
    assert power_of_paired_t_test(effect, n) == pytest.approx(0.8)
    # by the formula's limit for many pairs, and never below it
    assert effect * math.sqrt(n) >= stats.norm.ppf(0.975) + stats.norm.ppf(0.8) - 1e-3
    assert seeds_needed(effect * (1 + 1e-9)) == n


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5, 1.0, 4.0, 1e9])
def test_one_seed_less_would_not_do(effect: float) -> None:
    seeds = seeds_needed(effect)
    assert seeds is not None
    assert seeds == 2 or power_of_paired_t_test(effect, seeds - 1) < 0.8
    if effect < 10:
        assert power_of_paired_t_test(effect, seeds) >= 0.8


def test_published_sample_sizes() -> None:
    # Cohen's small, medium and large effect in the paired t test, at 5 % and 80 %
    assert [seeds_needed(effect) for effect in (0.2, 0.5, 0.8)] == [199, 34, 15]
    assert seeds_needed(1e-9) is None


def test_what_three_seeds_detect() -> None:
    differences = [0.1, 1.4, -0.6]
    result = sensitivity(differences)
    assert result is not None
    spread = float(stats.tstd(differences))
    assert power_of_paired_t_test(result["detectable"] / spread, 3) == pytest.approx(0.8)
    small, observed = result["seeds"]
    assert small == {"difference": 0.5, "seeds": seeds_needed(0.5 / spread)}
    assert observed["difference"] == pytest.approx(0.3)
    assert observed["seeds"] > small["seeds"]


@pytest.mark.parametrize(
    "differences",
    [[0.0, 0.0], [0.0, 0.0, 0.0], [0.7, 0.7, 0.7], [100 / 3, 100 / 3], [1.0, -1.0], [0.0, 1e-12],
     [0.0, 1e-6], [100.0, -100.0], [-3.0, 1.0], [2.0]],
)  # fmt: skip
def test_hardly_any_data_gives_plain_numbers(differences: list[float]) -> None:
    runs = [run("mlp", seed, 50.0) for seed in range(len(differences))]
    runs += [run("kan", seed, 50.0 + d) for seed, d in enumerate(differences)]
    rows = summarize(runs)
    json.dumps(rows, allow_nan=False)
    if len(set(differences)) == 1 or np.ptp(differences) < 1e-9:
        assert rows[1]["sensitivity"] is None
    elif sum(differences) == 0:  # nothing was observed, so no seeds for it
        assert [entry["difference"] for entry in rows[1]["sensitivity"]["seeds"]] == [0.5]


def test_the_spread_of_few_is_uncertain() -> None:
    random = np.random.default_rng(0)
    for n in (2, 3, 10):
        low, high = uncertainty_of_spread(n)
        spreads = np.std(random.normal(size=(20_000, n)), axis=1, ddof=1)
        inside = np.mean((low * spreads < 1) & (high * spreads > 1))
        assert inside == pytest.approx(0.95, abs=0.006)


def test_pictures_limit_an_accuracy() -> None:
    noise = picture_noise(80.0, 280)
    assert noise["one_picture"] == pytest.approx(100 / 280)
    assert noise["standard_error"] == pytest.approx(stats.binom(280, 0.8).std() / 2.8)
    assert picture_noise(100.0, 6)["standard_error"] is None
