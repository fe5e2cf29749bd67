"""One page on a finished training run: its accuracy, its mistakes, and its learned functions."""

from kansformer.report.write import write_report

__all__ = ["write_report"]
