"""A fair comparison of KAN models with their MLP twin; `python -m kansformer.compare` runs one."""

from kansformer.compare.report import as_markdown, difference_as_text, draw
from kansformer.compare.statistics import accuracy, paired_interval, summarize

__all__ = [
    "accuracy",
    "as_markdown",
    "difference_as_text",
    "draw",
    "paired_interval",
    "summarize",
]
