"""What tests of figures have in common."""

from matplotlib.figure import Figure

from kansformer.figures import as_png

SLACK = 0.02  # inches: what letters have beyond their own boxes


def assert_drawn_within_bounds(figure: Figure) -> None:
    """Draws a figure; nothing of it, such as a long name, is cut off at its edges."""
    as_png(figure)
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert -SLACK <= box.x0 < box.x1 <= width + SLACK
    assert -SLACK <= box.y0 < box.y1 <= height + SLACK
