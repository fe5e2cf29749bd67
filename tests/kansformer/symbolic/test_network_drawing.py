"""Drawings show what is there."""

import subprocess
import sys

from kansformer.symbolic import plot
from models.kan import KAN
from tests.conftest import ROOT
from tests.kansformer.symbolic.networks import box, network


def test_a_drawing_has_a_curve_for_every_edge() -> None:
    model = network()
    figure = plot(model, box(), title="title")
    axes = figure.axes[0]
    assert len(axes.patches) == model.edge_count()
    texts = [text.get_text() for text in axes.texts]
    assert {"sin", "tanh", "$x_{1}$", "$y_{2}$"} <= set(texts)
    assert len(plot(KAN([2, 2, 1])).axes[0].patches) == 6


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = "import sys, kansformer.symbolic; print({'matplotlib', 'sympy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
