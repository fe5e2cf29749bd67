"""Drawings show what is there."""

from kansformer.interpret import (
    plot,
)  # fmt: skip
from models.kan import KAN
from tests.kansformer.interpret.test_model import box, network


def test_a_drawing_has_a_curve_for_every_edge() -> None:
    model = network()
    figure = plot(model, box(), title="title")
    axes = figure.axes[0]
    assert len(axes.patches) == model.edge_count()
    texts = [text.get_text() for text in axes.texts]
    assert {"sin", "tanh", "$x_{1}$", "$y_{2}$"} <= set(texts)
    assert len(plot(KAN([2, 2, 1])).axes[0].patches) == 6
