"""`KANRegressor` and `KANClassifier`: estimators that scikit-learn's own tools can work with.

Both scale their inputs, train a `DeepKAN` on the CPU in float64, keep a share of the samples back
to stop in time, and draw from generators of their own.
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

GRID_RANGES = {"standard": (-3.0, 3.0), "min-max": (-1.0, 1.0)}  # where scaled inputs lie
LEAST_FOR_VALIDATION = 20  # samples; of fewer, none are kept back


class _KANEstimator(BaseEstimator):
    """Parameters and training, which both estimators share.

    Args:
        hidden: widths between input and output, each at least 3; () fits a sum of functions of
            one input each.
        grid_size, spline_order, base_activation: of the splines, see `models.kan_variants`.
        dropout: share of hidden values set to zero in training.
        scaling: of the inputs, "standard" (grid ±3) or "min-max" (grid ±1, the data's range).
        lr, weight_decay: of AdamW.
        l1, l2: penalties on the weights, see `KANTrainer`.
        batch_size: samples per step; None for all at once.
        max_epochs: passes over the samples at most.
        validation_fraction: share of the samples kept back to stop in time; none of fewer than 20.
        patience: epochs without a better validation loss, after which training stops.
        random_state: an int makes every fit the same.

    Attributes:
        model_: a `StandardizedModel` in float64, data in, predictions out.
        history_, best_epoch_: see `KANTrainer`.
        n_features_in_, feature_names_in_: as scikit-learn has them.
        classes_: of a classifier, the labels in the order of the probabilities.
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
        """A fresh network of these parameters in float64; its scaling is not fitted yet.

        Args:
            generator: draws the initial parameters and dropout's masks; None for torch's global
                one.

        Raises:
            ValueError: parameters that no network can be built from.
        """
        if not isinstance(self.hidden, Sequence | np.ndarray):
            raise ValueError(f"hidden must be widths such as (16,), not {self.hidden!r}")
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
        """Sets model_, history_ and best_epoch_; x (N, inputs), y (N, outputs) or classes (N,)."""
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
        """Rows to fit on, and rows that say when to stop, by class where that can be done."""
        rows = np.arange(count)
        kept_back = round(self.validation_fraction * count)
        if count < LEAST_FOR_VALIDATION or kept_back < 1:
            return [rows, rows[:0]]
        if classes is not None:
            sizes = np.bincount(classes)
            if sizes.min() < 2 or len(sizes) > kept_back:
                classes = None
        return train_test_split(rows, test_size=kept_back, random_state=seed, stratify=classes)

    def _output(self, X: Any) -> torch.Tensor:
        """What the network says of X (N, inputs), (N, outputs)."""
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
        """Predictions for X (N, inputs), in the shape and units of the y of `fit`."""
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
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes; all are {y[0]!r}")
        self._train(X, numbers, len(self.classes_), "cross_entropy")
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, classes), in the order of `classes_`."""
        return self._output(X).softmax(dim=-1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row of X (N, inputs)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]
