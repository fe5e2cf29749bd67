"""Small KANs on tables: scaling, training, and estimators in the manner of scikit-learn."""

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
