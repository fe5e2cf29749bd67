"""Small KANs on tables, next to scikit-learn's MLP, gradient boosting and a linear model.

    python benchmarks/bench_regression.py --json regression.json

Every estimator has its own defaults, which were not chosen on these data sets; the MLP and the
linear model get standardized inputs and targets, and the MLP enough iterations to converge. All see
the same 5 folds: R² for regression, accuracy for classification, mean and standard deviation.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, is_classifier
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_wine, make_friedman1
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import measure
from kansformer.regression import KANClassifier, KANRegressor

FOLDS = 5


def data_sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets by name."""
    return {
        "diabetes": load_diabetes(return_X_y=True),
        "friedman1": make_friedman1(n_samples=500, noise=1.0, random_state=0),
        "wine": load_wine(return_X_y=True),
    }


def regressors(seed: int) -> dict[str, BaseEstimator]:
    """Estimators by name."""

    def scaled(estimator: BaseEstimator) -> BaseEstimator:
        inputs = make_pipeline(StandardScaler(), estimator)
        return TransformedTargetRegressor(inputs, transformer=StandardScaler())

    return {
        "KAN": KANRegressor(random_state=seed),
        "KAN, no hidden layer": KANRegressor((), random_state=seed),
        "MLP": scaled(MLPRegressor(max_iter=5000, random_state=seed)),
        "MLP, early stopping": scaled(
            MLPRegressor(max_iter=5000, early_stopping=True, random_state=seed)
        ),
        "gradient boosting": GradientBoostingRegressor(random_state=seed),
        "linear": scaled(RidgeCV()),
    }


def classifiers(seed: int) -> dict[str, BaseEstimator]:
    """The same for classes."""

    def scaled(estimator: BaseEstimator) -> BaseEstimator:
        return make_pipeline(StandardScaler(), estimator)

    return {
        "KAN": KANClassifier(random_state=seed),
        "KAN, no hidden layer": KANClassifier((), random_state=seed),
        "MLP": scaled(MLPClassifier(max_iter=5000, random_state=seed)),
        "MLP, early stopping": scaled(
            MLPClassifier(max_iter=5000, early_stopping=True, random_state=seed)
        ),
        "gradient boosting": GradientBoostingClassifier(random_state=seed),
        "linear": scaled(LogisticRegression()),
    }


def compare(
    estimators: dict[str, BaseEstimator], x: np.ndarray, y: np.ndarray, seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Scores on all folds of every seed's shuffle, and seconds per fit, by estimator."""
    results = {}
    for name, estimator in estimators.items():
        kind = StratifiedKFold if is_classifier(estimator) else KFold
        scores: list[float] = []
        start = time.perf_counter()
        for seed in seeds:
            folds = kind(FOLDS, shuffle=True, random_state=seed)
            scores += cross_val_score(estimator, x, y, cv=folds).tolist()
        seconds = (time.perf_counter() - start) / len(scores)
        results[name] = {
            "mean": float(np.mean(scores)), "deviation": float(np.std(scores, ddof=1)),
            "scores": scores, "seconds_per_fit": seconds,
        }  # fmt: skip
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Scores of small KANs on tables.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the folds")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = measure.machine("cpu", ("torch", "scikit-learn"))
    print(", ".join(f"{key} {value}" for key, value in facts.items()))

    results = {}
    for name, (x, y) in data_sets().items():
        estimators = classifiers(0) if name == "wine" else regressors(0)
        results[name] = compare(estimators, x, y, options.seeds)
        figure = "accuracy" if name == "wine" else "R²"
        print(f"\n{name}: {x.shape[0]} rows, {x.shape[1]} inputs; {figure} on"
              f" {FOLDS * len(options.seeds)} folds")  # fmt: skip
        for label, row in results[name].items():
            print(f"  {label:22}{row['mean']:8.3f} ± {row['deviation']:.3f}"
                  f"{row['seconds_per_fit']:9.2f} s per fit")  # fmt: skip
    if options.json:
        content = {"machine": facts, "results": results}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
