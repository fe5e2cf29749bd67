"""Evaluates a model on labelled pictures."""

from kansformer.evaluate.metrics import best_epoch, evaluate

__all__ = ["best_epoch", "evaluate"]
