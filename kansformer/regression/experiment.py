"""One fit to a table: split, train, measure, explain. Nothing here prints or writes files."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import metrics
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.model_selection import train_test_split

from kansformer.errors import UserError
from kansformer.figures import drawable_names
from kansformer.regression.estimators import KANClassifier, KANRegressor
from kansformer.regression.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_EFFECTS = 12  # most inputs in the plot, the most important ones
MOST_CURVES = 6  # most classes in the plot
MOST_ROWS = 500  # most rows that an effect is averaged over


@dataclass(frozen=True)
class Experiment:
    """A fitted estimator with its training rows and test rows."""

    estimator: KANRegressor | KANClassifier
    table: Table
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    importance: dict[str, float]  # decrease of the test score if the input is shuffled
    seconds: float

    @property
    def task(self) -> str:
        """One of TASKS."""
        return "regression" if isinstance(self.estimator, KANRegressor) else "classification"

    def results(self) -> dict[str, Any]:
        """The contents of results.json, in plain types."""
        network = self.estimator.model_.network
        return {
            "task": self.task,
            "inputs": self.table.input_names,
            "samples": {"train": len(self.train[0]), "test": len(self.test[0])},
            "metrics": {
                "train": measure(self.estimator, *self.train),
                "test": measure(self.estimator, *self.test),
            },
            "baseline": baseline(self.train[1], self.test[1], self.task),
            "importance": self.importance,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "epochs": len(self.estimator.history_),
            "best_epoch": self.estimator.best_epoch_,
            "seconds": round(self.seconds, 3),
            "settings": {**self.estimator.get_params(), "hidden": list(self.estimator.hidden)},
        }

    def plots(self, target: str) -> dict[str, "Figure"]:
        """Figures by file name; without effects.png if no input varies."""
        from kansformer.regression import plots

        (target,) = drawable_names([target], "target")
        x, y = self.test
        prediction = self.estimator.predict(x)
        scores = measure(self.estimator, x, y)
        history = plots.draw_history(self.estimator.history_, self.estimator.best_epoch_)
        if isinstance(self.estimator, KANRegressor):
            title = f"{len(y)} test rows: R² {scores['r2']:.3f}, RMSE {scores['rmse']:.4g}"
            name, second = "predictions.png", plots.draw_predictions(y, prediction, target, title)
            curves: Sequence[str] = ()
            axis = target
        else:
            title = f"{len(y)} test rows: accuracy {100 * scores['accuracy']:.1f} %"
            counts = metrics.confusion_matrix(y, prediction, labels=self.estimator.classes_)
            classes = drawable_names([str(name) for name in self.estimator.classes_])
            name, second = "confusion.png", plots.draw_confusion(counts, classes, title)
            curves, axis = classes[:MOST_CURVES], "mean probability"
            if len(classes) == 2:  # the probability of the other class follows
                curves, axis = (), f"mean probability of {classes[1]}"
        figures = {"history.png": history, name: second}
        if effects := self.effects(max(len(curves), 1)):
            figures["effects.png"] = plots.draw_effects(effects, axis, curves)
        return figures

    def effects(self, curves: int) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
        """Partial dependence on the most important inputs that vary.

        Returns:
            Per input its name, values (P,), mean outputs (curves, P), and importance.
        """
        names = self.table.input_names
        shown = drawable_names(names, "input")
        x = self.train[0][:MOST_ROWS]
        varying = [name for column, name in enumerate(names) if np.ptp(x[:, column]) > 0]
        effects = []
        for name in sorted(varying, key=lambda n: -self.importance[n])[:MOST_EFFECTS]:
            column = names.index(name)
            effect = partial_dependence(
                self.estimator, x, [column], grid_resolution=60, method="brute"
            )
            averages = effect["average"][:curves]
            values = effect["grid_values"][0]
            effects.append((shown[column], values, averages, self.importance[name]))
        return effects


def run_experiment(
    table: Table, task: str, settings: dict[str, Any], test_share: float, seed: int
) -> Experiment:
    """Fits an estimator to the training rows of a table, and measures it on the others.

    Args:
        settings: parameters of the estimator.
        test_share: share of the rows in the test set.
        seed: seed of the split and of the training.

    Raises:
        UserError: a share that leaves too few rows, or invalid settings.
        JobFailed: training diverged.
    """
    kind = KANRegressor if task == "regression" else KANClassifier
    try:
        x_train, x_test, y_train, y_test = train_test_split(
            table.x, table.y, test_size=test_share, random_state=seed,
            stratify=table.y if task == "classification" else None,
        )  # fmt: skip
        if len(x_test) < 2:
            raise ValueError("the test set needs at least two rows")
    except ValueError as error:
        raise UserError(f"--test-share {test_share}: {error}; choose another share") from None
    estimator = kind(random_state=seed, **settings)
    start = time.perf_counter()
    try:
        estimator.fit(x_train, y_train)
    except ValueError as error:
        raise UserError(f"the network cannot be trained: {error}; change the flags") from None
    seconds = time.perf_counter() - start
    shuffled = permutation_importance(
        estimator,
        x_test,
        y_test,
        n_repeats=5,
        random_state=seed,
        max_samples=min(1000, len(x_test)),
    )
    means = shuffled.importances_mean.tolist()
    importance = dict(zip(table.input_names, means, strict=True))
    return Experiment(estimator, table, (x_train, y_train), (x_test, y_test), importance, seconds)


def measure(
    estimator: KANRegressor | KANClassifier, x: np.ndarray, y: np.ndarray
) -> dict[str, float]:
    """The usual metrics for rows x (N, inputs) and their true y (N,)."""
    prediction = estimator.predict(x)
    if isinstance(estimator, KANRegressor):
        return _regression_metrics(y, prediction)
    probabilities = estimator.predict_proba(x)
    return {
        "accuracy": float(metrics.accuracy_score(y, prediction)),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(y, prediction)),
        "log_loss": float(metrics.log_loss(y, probabilities, labels=estimator.classes_)),
    }


def baseline(y_train: np.ndarray, y_test: np.ndarray, task: str) -> dict[str, float]:
    """Test metrics of a baseline without inputs: the mean, or the most frequent class."""
    if task == "regression":
        return _regression_metrics(y_test, np.full(len(y_test), y_train.mean()))
    classes, counts = np.unique(y_train, return_counts=True)
    return {"accuracy": float((y_test == classes[counts.argmax()]).mean())}


def _regression_metrics(y: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    return {
        "r2": float(metrics.r2_score(y, prediction)),
        "rmse": float(metrics.root_mean_squared_error(y, prediction)),
        "mae": float(metrics.mean_absolute_error(y, prediction)),
    }
