"""Other people's ViT weights, and our own, into our model, with a report on every tensor."""

from kansformer.pretrained.load import load_for_classes, load_pretrained
from kansformer.pretrained.report import LoadReport

__all__ = ["LoadReport", "load_for_classes", "load_pretrained"]
