"""Training: settings, recipes, the optimiser and the loop."""

from kansformer.train.config import TrainConfig
from kansformer.train.loop import train

__all__ = ["TrainConfig", "train"]
