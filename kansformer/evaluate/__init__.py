"""How good a model is on labelled pictures."""

from kansformer.evaluate.metrics import evaluate

__all__ = ["evaluate"]
