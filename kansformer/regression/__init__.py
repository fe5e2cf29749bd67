"""Small KANs for tables: scaling, training, and scikit-learn estimators."""

from kansformer.regression.estimators import KANClassifier, KANRegressor
from kansformer.regression.model_file import load_estimator, save_estimator
from kansformer.regression.standardizer import StandardizedModel, Standardizer
from kansformer.regression.synthetic import create_synthetic_dataset
from kansformer.regression.trainer import KANTrainer, predict

__all__ = [
    "KANClassifier",
    "KANRegressor",
    "KANTrainer",
    "StandardizedModel",
    "Standardizer",
    "create_synthetic_dataset",
    "load_estimator",
    "predict",
    "save_estimator",
]
