"""One page on a finished training run: what it reached, where it errs, what it has learned."""

from kansformer.report.write import write_report

__all__ = ["write_report"]
