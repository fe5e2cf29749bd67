"""Texts in figures: they fit, they stay apart, and they are drawn whatever their script."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, get_data_path
from matplotlib.figure import Figure
from PIL import Image

from kansformer import figures
from kansformer.figures import (
    THEMES,
    as_png,
    as_svg,
    drawable_names,
    font_hint,
    new_figure,
    shortened,
    shortened_names,
    text_width,
    wrapped,
)
from tests.conftest import ROOT

CAT, DOG = "\U00012000\U00012001", "\U00012002"  # cuneiform signs
SIDE = 800  # of the test font's glyphs, in thousandths of the letters' size


@pytest.fixture(autouse=True)
def usual_font_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fonts but matplotlib's own, and nothing is known of any letter yet."""
    own = [e for e in font_manager.fontManager.ttflist if e.fname.startswith(get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(figures, "_FAMILIES", {})


@pytest.fixture
def squares(tmp_path: Path) -> None:
    """A font on this machine that has the letters of `CAT`, as squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, SIDE), (SIDE, SIDE), (SIDE, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square" for letter in CAT})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    path = tmp_path / "squares.ttf"
    builder.save(path)
    font_manager.fontManager.addfont(path)


def said(text: str) -> tuple[Figure, np.ndarray]:
    """A figure with nothing but this text, in letters of 50 points, and where its PNG has ink."""
    figure = new_figure(THEMES["light"], 6, 2, dpi=72)
    figure.set_layout_engine("none")
    figure.text(0.1, 0.3, text, fontsize=50, color="black", parse_math=False)
    with Image.open(io.BytesIO(as_png(figure))) as image:
        return figure, 1 - np.asarray(image.convert("L"), dtype=float) / 255


@pytest.mark.usefixtures("squares")
def test_a_letter_is_drawn_by_the_font_that_has_it() -> None:
    figure, ink = said(CAT)
    assert figure.texts[0].get_text() == CAT
    assert ink.sum() == pytest.approx(2 * (0.001 * SIDE * 50) ** 2, rel=0.05)
    assert drawable_names(["a", CAT, "Кот"]) == ("a", CAT, "Кот")
    assert font_hint(["a", CAT, "Кот"]) is None
    assert text_width(CAT, 50) == pytest.approx(2 * 50 / 72, rel=0.15)


def test_a_letter_that_no_font_has_is_written_out() -> None:
    figure, ink = said(f"a {DOG}")
    assert figure.texts[0].get_text() == r"a \U00012002"
    assert np.array_equal(ink, said(r"a \U00012002")[1])


def test_ticks_are_written_out_too() -> None:
    figure = new_figure(THEMES["light"], 3, 2)
    axes = figure.subplots()
    axes.set_yticks([0, 1], ["a", DOG])
    as_png(figure)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", r"\U00012002"]


def test_names_get_a_substitute_and_one_line_says_so() -> None:
    names = ["a", CAT, "Кот", f"x{DOG}"]
    assert drawable_names(names) == ("a", "class 1", "Кот", "class 3")
    hint = font_hint(names) or ""
    assert hint.startswith(f"note: no font on this machine has all letters of {CAT} and 1 more")
    assert "\n" not in hint


def test_joiners_and_variations_are_no_letters_to_miss() -> None:
    names = ["a\u200db", "a\ufe0fb", "a\u2060b", "a\U000e0101b"]
    assert drawable_names(names) == tuple(names)
    _, ink = said("a\U000e0101b")
    assert np.array_equal(ink, said("ab")[1])


def test_an_svg_keeps_the_text_for_the_browsers_fonts() -> None:
    figure = new_figure(THEMES["light"], 3, 2)
    figure.subplots().set_title(f"{CAT} <b> & é", parse_math=False)
    svg = as_svg(figure, "words")
    assert f"{CAT} &lt;b&gt; &amp; é" in svg
    assert set(re.findall(r"font-family: ([^;\"]*)", svg)) <= {"var(--sans)"}


def test_ascii_needs_no_search_of_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    def search() -> Iterator[tuple[str, str]]:
        raise AssertionError("searched")

    monkeypatch.setattr(figures, "_fonts", search)
    said("cat_1 $x")
    assert drawable_names(["cat", "dog"]) == ("cat", "dog")
    assert font_hint(["cat", "dog"]) is None


def test_importing_it_costs_no_matplotlib() -> None:
    code = "import sys, kansformer.figures; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def drawn_width(text: str, size: float) -> float:
    """Inches that matplotlib's renderer takes for a text."""
    figure = Figure(dpi=200)
    return figure.text(0, 0, text, fontsize=size, parse_math=False).get_window_extent().width / 200


NAMES = [
    "cat",
    "W" * 60,
    "a_name with $many^ words " * 5,
    "x" * 100_000,
    "Кошка " * 20,
    "iiii" * 30,
]


@pytest.mark.parametrize("inches", [0.5, 1.0, 2.0])
def test_a_shortened_name_fits_and_keeps_its_ends(inches: float) -> None:
    for name in NAMES:
        short = shortened(name, inches, 8)
        assert drawn_width(short, 8) <= inches + 0.02
        if short != name:
            assert drawn_width(name[:200], 8) > inches
            start, end = short.split("…")
            assert name.startswith(start)
            assert name.endswith(end)
            assert drawn_width(short, 8) > 0.7 * inches


@pytest.mark.parametrize(
    "names",
    [
        [f"class number {index} of a long list of classes" for index in range(30)],
        [f"{'a' * 50}{index}{'b' * 50}" for index in range(30)],
        [f"{'a' * index}" for index in range(40, 70)],
        [f"{first * 40}{middle}{first * 40}" for first in "ab" for middle in "xy"],
        ["same\nline", "other", "x" * 90],
    ],
)
def test_shortened_names_stay_different(names: list[str]) -> None:
    short = shortened_names(names, 1.0, 8)
    assert len(set(short)) == len(names)
    assert all(drawn_width(name, 8) <= 1.15 for name in short)


def test_wrapped_words_are_all_there_and_fit() -> None:
    lines = wrapped(["predicted", "golden", "retriever", "(93 %)"], 1.0, 8).split("\n")
    assert " ".join(lines) == "predicted golden retriever (93 %)"
    assert all(drawn_width(line, 8) <= 1.02 for line in lines)
    assert wrapped(["W" * 60], 1.0, 8).count("\n") == 0
