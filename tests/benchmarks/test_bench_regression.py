"""The benchmark of tables scores what it says it does."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LinearRegression

from benchmarks import bench_regression


def test_scores_are_those_of_the_estimators() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    contenders = {"exact": LinearRegression(), "mean": DummyRegressor()}
    results = bench_regression.compare(contenders, x, x[:, 0] + 3, seeds=[0, 1])
    assert len(results["exact"]["scores"]) == 10
    assert results["exact"]["mean"] == pytest.approx(1)
    assert results["mean"]["mean"] < 0.01 < results["mean"]["deviation"]
    labels = np.repeat([0, 1], [45, 15])
    guess = bench_regression.compare({"most": DummyClassifier()}, x, labels, seeds=[0])
    assert guess["most"]["scores"] == [0.75] * 5  # folds are drawn by class


def test_the_contenders_of_both_tasks_are_the_same() -> None:
    assert list(bench_regression.regressors(0)) == list(bench_regression.classifiers(0))
    assert list(bench_regression.data_sets()) == ["diabetes", "friedman1", "wine"]
