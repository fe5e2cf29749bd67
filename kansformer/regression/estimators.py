"""`KANRegressor` and `KANClassifier`: estimators that scikit-learn's own tools can work with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from kansformer.regression.standardizer import StandardizedModel, Standardizer
from kansformer.regression.trainer import KANTrainer, predict
from models.kan_variants import DeepKAN

LEAST_FOR_VALIDATION = 20  # samples, below which none are kept back

GRID_RANGES = {"standard": (-3.0, 3.0), "min-max": (-1.0, 1.0)}


class _KANEstimator(BaseEstimator):
    """What both estimators share: parameters, the network and its training.

    Attributes of a fitted one: `model_`, a `StandardizedModel` in float64 on the CPU;
    `n_features_in_`; `history_` and `best_epoch_` as in `KANTrainer`.
    """

    model_: StandardizedModel

    def __init__(
        self,
        hidden: Sequence[int] = (8,),
        *,
        grid_size: int = 5,
        spline_order: int = 3,
        base_activation: str | None = "silu",
        dropout: float = 0.0,
        norm: bool = True,
        scaling: str = "standard",
        lr: float = 2e-2,
        weight_decay: float = 1e-2,
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
        self.norm = norm
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

    def _train(self, x: np.ndarray, y: np.ndarray, outputs: int, loss: str) -> None:
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = np.arange(len(x))
        held = None
        if len(x) >= LEAST_FOR_VALIDATION and self.validation_fraction > 0:
            rows, held = train_test_split(rows, test_size=self.validation_fraction, random_state=seed,
               stratify=y if loss == "cross_entropy" and np.bincount(y).min() > 1 else None)
        inputs = Standardizer(x.shape[1], self.scaling).fit(torch.from_numpy(x[rows]))
        targets = None
        y = torch.from_numpy(y)
        if loss == "mse":
            targets = Standardizer(outputs, "standard").fit(y[rows])
            y = targets(y)
        X = inputs(torch.from_numpy(x))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(x.shape[1], outputs, X[rows])
            trainer = KANTrainer(network, loss=loss, lr=self.lr, weight_decay=self.weight_decay, l1=self.l1, l2=self.l2,
              batch_size=self.batch_size, patience=self.patience if held is not None else None, seed=seed, **self._more())
            self.history_ = trainer.fit(X[rows], y[rows], validation=None if held is None else (X[held], y[held]), epochs=self.max_epochs)
        self.best_epoch_ = trainer.best_epoch
        self.model_ = StandardizedModel(inputs, network, targets).eval()

    def _more(self): return {}

    def _network(self, i, o, X):
        return DeepKAN([i, *self.hidden, o], dropout=self.dropout, norm=self.norm, grid_size=self.grid_size, spline_order=self.spline_order,
                base_activation=self.base_activation, grid_range=GRID_RANGES[self.scaling]).double()


class KANRegressor(RegressorMixin, _KANEstimator):
    def fit(self, X, y):
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._flat = y.ndim == 1
        y = y.reshape(len(y), -1).astype(np.float64)
        self._train(X, y, y.shape[1], "mse")
        return self

    def predict(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        y = predict(self.model_, torch.from_numpy(X)).numpy()
        return y[:, 0] if self._flat else y


class KANClassifier(ClassifierMixin, _KANEstimator):
    def fit(self, X, y):
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, y = np.unique(y, return_inverse=True)
        self._train(X, y, len(self.classes_), "cross_entropy")
        return self

    def predict_proba(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return predict(self.model_, torch.from_numpy(X)).softmax(dim=-1).numpy()

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
