"""From a weights file and pictures to classes."""

from kansformer.infer.predictor import Predictor, find_pictures

__all__ = ["Predictor", "find_pictures"]
