"""One fit of a table: split, train, measure, explain. Nothing is printed or written here."""

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

MOST_EFFECTS = 12  # inputs that are drawn, the most important ones
MOST_CURVES = 6  # classes that are drawn
MOST_ROWS = 500  # that an effect is averaged over


@dataclass(frozen=True)
class Experiment:
    """A fitted estimator with the rows it was fitted to and those that test it."""

    estimator: KANRegressor | KANClassifier
    table: Table
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    importance: dict[str, float]  # loss of test score when an input is shuffled
    seconds: float

    @property
    def task(self) -> str:
        """The kind of estimator."""
        return "regression" if isinstance(self.estimator, KANRegressor) else "classification"

    def results(self) -> dict[str, Any]:
        """What results.json says; plain types."""
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

    def pictures(self, target: str) -> dict[str, "Figure"]:
        """Figures by file name; none of effects where no input varies."""
        from kansformer.regression import plots

        (target,) = drawable_names([target], "target")
        x, y = self.test
        answer = self.estimator.predict(x)
        scores = measure(self.estimator, x, y)
        history = plots.draw_history(self.estimator.history_, self.estimator.best_epoch_)
        if isinstance(self.estimator, KANRegressor):
            title = f"{len(y)} test rows: R² {scores['r2']:.3f}, RMSE {scores['rmse']:.4g}"
            name, second = "predictions.png", plots.draw_predictions(y, answer, target, title)
            curves: Sequence[str] = ()
            axis = target
        else:
            title = f"{len(y)} test rows: {100 * scores['accuracy']:.1f} % right"
            counts = metrics.confusion_matrix(y, answer, labels=self.estimator.classes_)
            classes = drawable_names([str(name) for name in self.estimator.classes_])
            name, second = "confusion.png", plots.draw_confusion(counts, classes, title)
            curves, axis = classes[:MOST_CURVES], "mean probability"
            if len(classes) == 2:  # of two, one says all
                curves, axis = (), f"mean probability of {classes[1]}"
        figures = {"history.png": history, name: second}
        if effects := self.effects(max(len(curves), 1)):
            figures["effects.png"] = plots.draw_effects(effects, axis, curves)
        return figures

    def effects(self, curves: int) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
        """Partial dependence on the most important inputs that vary: see `plots.draw_effects`."""
        names = self.table.input_names
        shown = drawable_names(names, "input")
        x = self.train[0][:MOST_ROWS]
        varying = [name for column, name in enumerate(names) if np.ptp(x[:, column]) > 0]
        found = []
        for name in sorted(varying, key=lambda n: -self.importance[n])[:MOST_EFFECTS]:
            column = names.index(name)
            effect = partial_dependence(
                self.estimator, x, [column], grid_resolution=60, method="brute"
            )
            places = effect["grid_values"][0]
            found.append((shown[column], places, effect["average"][:curves], self.importance[name]))
        return found


def run_experiment(
    table: Table, task: str, settings: dict[str, Any], test_share: float, seed: int
) -> Experiment:
    """Fits an estimator to one part of a table, and keeps the other for a test.

    Args:
        settings: parameters of the estimator.
        test_share: share of the rows that test.
        seed: of the split and of the training.

    Raises:
        UserError: a share that leaves too few rows, or settings that no network can be built from.
        JobFailed: training diverged.
    """
    kind = KANRegressor if task == "regression" else KANClassifier
    try:
        x_train, x_test, y_train, y_test = train_test_split(
            table.x, table.y, test_size=test_share, random_state=seed,
            stratify=table.y if task == "classification" else None,
        )  # fmt: skip
        if len(x_test) < 2:
            raise ValueError("a test takes two rows at least")
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
    """The usual figures for rows x (N, inputs) and their true y (N,)."""
    answer = estimator.predict(x)
    if isinstance(estimator, KANRegressor):
        return _regression_figures(y, answer)
    chances = estimator.predict_proba(x)
    return {
        "accuracy": float(metrics.accuracy_score(y, answer)),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(y, answer)),
        "log_loss": float(metrics.log_loss(y, chances, labels=estimator.classes_)),
    }


def baseline(y_train: np.ndarray, y_test: np.ndarray, task: str) -> dict[str, float]:
    """Figures on the test of who knows no inputs: the mean, or the most frequent class."""
    if task == "regression":
        return _regression_figures(y_test, np.full(len(y_test), y_train.mean()))
    classes, counts = np.unique(y_train, return_counts=True)
    return {"accuracy": float((y_test == classes[counts.argmax()]).mean())}


def _regression_figures(y: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    return {
        "r2": float(metrics.r2_score(y, answer)),
        "rmse": float(metrics.root_mean_squared_error(y, answer)),
        "mae": float(metrics.mean_absolute_error(y, answer)),
    }
