"""Loads ViT weights of other libraries and of this project, with a report on every tensor."""

from kansformer.pretrained.distillation import Distillation, distill
from kansformer.pretrained.load import load_for_classes, load_pretrained
from kansformer.pretrained.report import LoadReport

__all__ = ["Distillation", "LoadReport", "distill", "load_for_classes", "load_pretrained"]
