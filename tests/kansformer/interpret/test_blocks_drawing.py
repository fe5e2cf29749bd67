"""Plots of blocks are legible in both themes, and have alternative texts."""

import re
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from kansformer.interpret.block_scores import LayerFacts
from kansformer.interpret.blocks_drawing import (
    THEMES,
    Answer,
    LayerCurves,
    UnitPictures,
    attention_alt_text,
    draw_attention,
    draw_functions,
    draw_overview,
    draw_units,
    functions_alt_text,
    in_percent,
    overview_alt_text,
    shape_in_words,
    units_alt_text,
)
from kansformer.interpret.edges import Curve
from kansformer.interpret.units import UnitUse
from tests.drawn import assert_drawn_within_bounds


def curve_of(y: torch.Tensor) -> Curve:
    x = torch.linspace(-2, 2, len(y))
    bounds = torch.linspace(-2, 2, 49)
    return Curve(3, 7, x, y, 0 * y, y, torch.ones(48), bounds, (-1.5, 1.5), 0.25)


T = torch.linspace(-2, 2, 201)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (T, r"rises from -1\.\d+ to 1\.\d+"),
        (-(T**3), r"falls from [678] to -[678]"),
        (T**2, r"falls, then rises between 0\.0 and 3\.8"),
        (torch.sin(4 * T), r"(falls|rises), then (falls|rises), then .* between -1\.0 and 1\.0"),
        (T + 0.01 * torch.sin(50 * T), r"rises from .*"),
        (0 * T + 0.5, r"is 0\.5 throughout"),
    ],
)
def test_shapes_in_words(y: torch.Tensor, words: str) -> None:
    assert re.fullmatch(words, shape_in_words(curve_of(y)))


def rgb(figure: object) -> np.ndarray:
    packed = BytesIO()
    figure.savefig(packed, format="png")  # type: ignore[attr-defined]
    return np.asarray(Image.open(packed).convert("RGB"), dtype=float)


@pytest.mark.parametrize("theme", THEMES)
def test_inks_stand_out_from_the_paper(theme: str) -> None:
    look = THEMES[theme]

    def luminance(color: str) -> float:  # WCAG 2.1
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(look.ink, look.paper) > 7
    assert contrast(look.muted, look.paper) > 4.5
    for paper in (look.paper, look.histogram):
        assert contrast(look.function, paper) > 3
    assert contrast(look.base, look.paper) > 3


def test_functions_are_drawn_and_described() -> None:
    layers = [LayerCurves("fc1: edges", [curve_of(T), curve_of(T**2)]),
              LayerCurves("fc2: edges", [curve_of(-T)])]  # fmt: skip
    light, dark = (rgb(draw_functions(1, layers, theme)) for theme in ("light", "dark"))
    assert light.shape == dark.shape
    assert light.mean() > 200
    assert dark.mean() < 80
    text = functions_alt_text(1, layers)
    assert text.startswith("Learned functions of block 1. fc1: edges: 7 → 3 rises")
    assert "25 % of its inputs outside the grid" in text


def test_units_are_drawn_and_described() -> None:
    means = torch.tensor([[0.1, 2.0], [0.5, -1.0], [torch.nan, torch.nan]])
    empty = torch.zeros(2, 0)
    use = UnitUse(means, empty, empty, empty)
    picture = Image.new("L", (8, 8), 90)
    units = [UnitPictures(1, [picture] * 3, [(0, 4, 4), None, (4, 4, 4)])]
    assert rgb(draw_units(0, units, use, ("cat", "dog", "emu"))).std() > 5
    text = units_alt_text(0, units, use, ("cat", "dog", "emu"))
    assert "Unit 1 is most active for cat (2) and least for dog (-1)" in text


def test_units_of_classes_with_long_names_stay_in_their_box() -> None:
    names = [f"$class {{^ number {index} of a long list of classes" for index in range(1000)]
    empty = torch.zeros(2, 0)
    use = UnitUse(torch.randn(1000, 6), empty, empty, empty)
    picture = Image.new("L", (8, 8), 90)
    figure = draw_units(
        0, [UnitPictures(unit, [picture] * 8, [None] * 8) for unit in range(6)], use, names
    )
    assert_drawn_within_bounds(figure)
    for bars in figure.axes[::2]:
        shown = [label.get_text() for label in bars.get_yticklabels()]
        assert len(set(shown)) == len(shown) == 10
        assert bars.get_window_extent().width > 0.08 * figure.bbox.width


ANSWERS = [
    Answer("daisy", 0.93, "dandelion"),
    Answer("a class with a long name in many words", 0.5, "a class with a long name in few words"),
    Answer("W" * 60, 0.9999, "$x_{^"),
    Answer("two\nlines", 0.001, "two\nlines"),
]


@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("theme", THEMES)
def test_titles_name_the_true_class_and_fit_above_their_pictures(count: int, theme: str) -> None:
    answers = (2 * ANSWERS)[:count]
    rows = [(name, [Image.new("RGB", (8, 8))] * count) for name in ("picture", "attention")]
    figure = draw_attention(rows, answers, theme)
    assert_drawn_within_bounds(figure)
    titles = [axes.title for axes in figure.axes[:count]]
    for axes, title, answer in zip(figure.axes, titles, answers, strict=False):
        predicted, true = title.get_text().split("\ntrue: ")
        assert predicted.startswith("predicted")
        assert predicted.endswith(f"({in_percent(answer.probability)})")
        name = predicted.removeprefix("predicted").rpartition("(")[0]
        assert (" ".join(name.split()) == " ".join(true.split())) == (
            answer.predicted == answer.true
        )
        box, picture = title.get_window_extent(), axes.get_window_extent()
        assert box.y0 >= picture.y1
        assert box.width <= 1.1 * picture.width
    boxes = [title.get_window_extent() for title in titles]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    assert titles[0].get_text() == "predicted daisy (93 %)\ntrue: dandelion"
    text = attention_alt_text(rows, answers)
    assert "predicted daisy (93 %), true: dandelion" in text
    assert text.startswith("1 picture (" if count == 1 else f"{count} pictures (")


def test_percentages_are_whole_and_nothing_uncertain_is_called_certain() -> None:
    probabilities = (0.0, 0.001, 0.0051, 0.5, 0.994, 0.9951, 1.0)
    assert [in_percent(p) for p in probabilities] == [
        "0 %", "< 1 %", "1 %", "50 %", "99 %", "> 99 %", "100 %"
    ]  # fmt: skip


def test_the_overview_is_drawn_and_described() -> None:
    facts = [("block 0, fc1", LayerFacts(0.02, 0.4)), ("block 0, fc2", LayerFacts(0.0, 0.1))]
    assert rgb(draw_overview(facts)).std() > 5
    assert "block 0, fc1: 2 % of the inputs outside the grid, 40 %" in overview_alt_text(facts)


def test_a_function_of_a_constant_has_one_value() -> None:
    counts = torch.zeros(48)
    counts[20:22] = 50.0  # its inputs are nearly all equal
    curve = Curve(3, 7, T, T, 0 * T, T, counts, torch.linspace(-2, 2, 49), (-1.5, 1.5), 0.0)
    assert re.fullmatch(r"is -0\.(28|3) throughout", shape_in_words(curve))
