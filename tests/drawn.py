"""Helpers for tests of figures."""

from matplotlib.figure import Figure

from kansformer.figures import as_png

SLACK = 0.02  # inches by which letters may extend beyond their bounding boxes


def assert_drawn_within_bounds(figure: Figure) -> None:
    """Asserts that nothing in a figure, such as a long name, is cut off at its edges."""
    as_png(figure)
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert -SLACK <= box.x0 < box.x1 <= width + SLACK
    assert -SLACK <= box.y0 < box.y1 <= height + SLACK
