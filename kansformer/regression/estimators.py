"""`KANRegressor` and `KANClassifier`: estimators for scikit-learn.

Both scale their inputs, train a `DeepKAN` on the CPU in float64, hold out a share of the samples
for early stopping, and do not use global random generators.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from kansformer.regression.standardizer import StandardizedModel, Standardizer
from kansformer.regression.trainer import KANTrainer, predict
from models.kan_variants import DeepKAN

GRID_RANGES = {"standard": (-3.0, 3.0), "min-max": (-1.0, 1.0)}  # range of scaled inputs
LEAST_FOR_VALIDATION = 20  # with fewer samples, none are held out


class _KANEstimator(BaseEstimator):
    """Parameters and training shared by both estimators.

    Args:
        hidden: widths of the hidden layers, each at least 3; () fits a sum of functions of one
            input each.
        grid_size, spline_order, base_activation: grid intervals, order and base function of the
            splines.
        dropout: share of hidden values set to zero in training.
        scaling: scaling of the inputs: "standard" (grid ±3) or "min-max" (grid ±1, the data's
            range).
        lr, weight_decay: for AdamW.
        l1, l2: weights of the penalties Σ|w| and Σw².
        batch_size: samples per step; None for all at once.
        max_epochs: maximum number of epochs.
        validation_fraction: share of the samples held out for early stopping; with fewer than 20
            samples, none are.
        patience: epochs without a better validation loss after which training stops.
        random_state: an int makes fits repeatable.

    Attributes:
        model_: the `StandardizedModel` in float64, in the data's units.
        history_: one dict per epoch, with epoch, train_loss, lr and val_loss.
        best_epoch_: the epoch whose weights were kept.
        n_features_in_, feature_names_in_: as in scikit-learn.
        classes_: for a classifier, the labels in the order of the probabilities.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (16,),
        *,
        grid_size: int = 3,
        spline_order: int = 3,
        base_activation: str | None = "silu",
        dropout: float = 0.0,
        scaling: str = "standard",
        lr: float = 2e-2,
        weight_decay: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        batch_size: int | None = None,
        max_epochs: int = 300,
        validation_fraction: float = 0.15,
        patience: int = 40,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden = hidden
        self.grid_size = grid_size
        self.spline_order = spline_order
        self.base_activation = base_activation
        self.dropout = dropout
        self.scaling = scaling
        self.lr = lr
        self.weight_decay = weight_decay
        self.l1 = l1
        self.l2 = l2
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state

    def build(
        self, inputs: int, outputs: int, generator: torch.Generator | None = None
    ) -> StandardizedModel:
        """A new network in float64, with scaling that is not fitted yet.

        Args:
            generator: for initial parameters and dropout masks; None for torch's global generator.

        Raises:
            ValueError: invalid parameters.
        """
        if not isinstance(self.hidden, Sequence | np.ndarray):
            raise ValueError(f"hidden must be a sequence such as (16,), not {self.hidden!r}")
        scaling = Standardizer(inputs, self.scaling)
        network = DeepKAN(
            [inputs, *self.hidden, outputs],
            dropout=self.dropout,
            grid_size=self.grid_size,
            spline_order=self.spline_order,
            base_activation=self.base_activation,
            grid_range=GRID_RANGES[self.scaling],
            generator=generator,
        )
        target_scaling = Standardizer(outputs) if isinstance(self, RegressorMixin) else None
        return StandardizedModel(scaling, network, target_scaling).double()

    def _train(self, x: np.ndarray, y: np.ndarray, outputs: int, loss: str) -> None:
        """Fits to x (N, inputs) and y (N, outputs) or class indices (N,), and sets model_ etc."""
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must be in [0, 1), not {self.validation_fraction}"
            )
        if self.max_epochs < 1:
            raise ValueError(f"max_epochs must be at least 1, not {self.max_epochs}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        fitted, held_out = self._split(y if loss == "cross_entropy" else None, len(x), seed)
        model = self.build(x.shape[1], outputs, torch.Generator().manual_seed(seed))
        inputs, targets = torch.tensor(x), torch.tensor(y)  # copies: x may be read-only
        inputs = model.inputs.fit(inputs[fitted])(inputs)
        if model.outputs is not None:
            targets = model.outputs.fit(targets[fitted])(targets)
        trainer = KANTrainer(
            model.network,
            loss=loss,
            lr=self.lr,
            weight_decay=self.weight_decay,
            l1=self.l1,
            l2=self.l2,
            batch_size=self.batch_size,
            patience=self.patience if len(held_out) else None,
            seed=seed,
        )
        self.history_ = trainer.fit(
            inputs[fitted],
            targets[fitted],
            validation=(inputs[held_out], targets[held_out]) if len(held_out) else None,
            epochs=self.max_epochs,
        )
        self.best_epoch_ = trainer.best_epoch
        self.model_ = model.eval()

    def _split(self, classes: np.ndarray | None, count: int, seed: int) -> list[np.ndarray]:
        """Training rows and validation rows, stratified by class if possible."""
        rows = np.arange(count)
        held_out = round(self.validation_fraction * count)
        if count < LEAST_FOR_VALIDATION or held_out < 1:
            return [rows, rows[:0]]
        if classes is not None:
            sizes = np.bincount(classes)
            if sizes.min() < 2 or len(sizes) > held_out:
                classes = None
        return train_test_split(rows, test_size=held_out, random_state=seed, stratify=classes)

    def _output(self, X: Any) -> torch.Tensor:
        """The network's output for X, (N, inputs) -> (N, outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return predict(self.model_, torch.tensor(X))


class KANRegressor(RegressorMixin, _KANEstimator):
    """A KAN that predicts numbers, one or several per sample; parameters as in `_KANEstimator`."""

    def fit(self, X: Any, y: Any) -> "KANRegressor":
        """Trains on X (N, inputs) and y (N,) or (N, outputs).

        Raises:
            ValueError: bad parameters, or samples that are too few or not finite.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        self._flat = y.ndim == 1
        y = y.reshape(len(y), -1).astype(np.float64)
        self._train(X, y, y.shape[1], "mse")
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions for X (N, inputs), in the shape and units of y in `fit`."""
        y = self._output(X).numpy()
        return y[:, 0] if self._flat else y

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class KANClassifier(ClassifierMixin, _KANEstimator):
    """A KAN that predicts classes and their probabilities; parameters as in `_KANEstimator`."""

    def fit(self, X: Any, y: Any) -> "KANClassifier":
        """Trains on X (N, inputs) and labels y (N,).

        Raises:
            ValueError: bad parameters, samples that are too few or not finite, or a single class.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes; all labels are {y[0]!r}")
        self._train(X, indices, len(self.classes_), "cross_entropy")
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, classes), in the order of `classes_`."""
        return self._output(X).softmax(dim=-1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row of X (N, inputs)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]
