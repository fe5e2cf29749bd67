"""Training: settings, recipes, the optimizer and the loop."""

from kansformer.train.config import TrainConfig
from kansformer.train.loop import train

__all__ = ["TrainConfig", "train"]
