"""Text in figures: it fits, names stay distinguishable, and any script can be drawn."""

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
SIDE = 800  # side of the test font's square glyphs, in thousandths of the font size


@pytest.fixture(autouse=True)
def bundled_fonts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only matplotlib's bundled fonts are installed, and the cache of letters is empty."""
    fonts = [e for e in font_manager.fontManager.ttflist if e.fname.startswith(get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(figures, "_FAMILIES", {})


@pytest.fixture
def squares(tmp_path: Path) -> None:
    """Installs a font that has the letters of `CAT`, as squares."""
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


def drawn_text(text: str) -> tuple[Figure, np.ndarray]:
    """A figure with only this text, at 50 points, and the darkness (H, W) of its PNG, 0 to 1."""
    figure = new_figure(THEMES["light"], 6, 2, dpi=72)
    figure.set_layout_engine("none")
    figure.text(0.1, 0.3, text, fontsize=50, color="black", parse_math=False)
    with Image.open(io.BytesIO(as_png(figure))) as image:
        return figure, 1 - np.asarray(image.convert("L"), dtype=float) / 255


@pytest.mark.usefixtures("squares")
def test_a_letter_is_drawn_with_a_font_that_has_it() -> None:
    figure, ink = drawn_text(CAT)
    assert figure.texts[0].get_text() == CAT
    assert ink.sum() == pytest.approx(2 * (0.001 * SIDE * 50) ** 2, rel=0.05)
    assert drawable_names(["a", CAT, "Кот"]) == ("a", CAT, "Кот")
    assert font_hint(["a", CAT, "Кот"]) is None
    assert text_width(CAT, 50) == pytest.approx(2 * 50 / 72, rel=0.15)


def test_a_letter_that_no_font_has_is_drawn_as_an_escape() -> None:
    figure, ink = drawn_text(f"a {DOG}")
    assert figure.texts[0].get_text() == r"a \U00012002"
    assert np.array_equal(ink, drawn_text(r"a \U00012002")[1])


def test_tick_labels_are_drawn_as_escapes_too() -> None:
    figure = new_figure(THEMES["light"], 3, 2)
    axes = figure.subplots()
    axes.set_yticks([0, 1], ["a", DOG])
    as_png(figure)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", r"\U00012002"]


def test_undrawable_names_are_substituted_and_reported_in_one_line() -> None:
    names = ["a", CAT, "Кот", f"x{DOG}"]
    assert drawable_names(names) == ("a", "class 1", "Кот", "class 3")
    hint = font_hint(names) or ""
    assert hint.startswith(f"note: no font on this machine has all letters of {CAT} and 1 more")
    assert "\n" not in hint


def test_joiners_and_variation_selectors_need_no_glyph() -> None:
    names = ["a\u200db", "a\ufe0fb", "a\u2060b", "a\U000e0101b"]
    assert drawable_names(names) == tuple(names)
    _, ink = drawn_text("a\U000e0101b")
    assert np.array_equal(ink, drawn_text("ab")[1])


def test_an_svg_keeps_the_text_for_the_browsers_fonts() -> None:
    figure = new_figure(THEMES["light"], 3, 2)
    figure.subplots().set_title(f"{CAT} <b> & é", parse_math=False)
    svg = as_svg(figure, "words")
    assert f"{CAT} &lt;b&gt; &amp; é" in svg
    assert set(re.findall(r"font-family: ([^;\"]*)", svg)) <= {"var(--sans)"}


def test_ascii_needs_no_font_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def search() -> Iterator[tuple[str, str]]:
        raise AssertionError("searched")

    monkeypatch.setattr(figures, "_fonts", search)
    drawn_text("cat_1 $x")
    assert drawable_names(["cat", "dog"]) == ("cat", "dog")
    assert font_hint(["cat", "dog"]) is None


def test_importing_figures_does_not_import_matplotlib() -> None:
    code = "import sys, kansformer.figures; print('matplotlib' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def drawn_width(text: str, size: float) -> float:
    """Width of a text in inches, as drawn by matplotlib's renderer."""
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
def test_shortened_names_stay_distinct(names: list[str]) -> None:
    short = shortened_names(names, 1.0, 8)
    assert len(set(short)) == len(names)
    assert all(drawn_width(name, 8) <= 1.15 for name in short)


def test_wrapped_words_are_all_there_and_fit() -> None:
    lines = wrapped(["predicted", "golden", "retriever", "(93 %)"], 1.0, 8).split("\n")
    assert " ".join(lines) == "predicted golden retriever (93 %)"
    assert all(drawn_width(line, 8) <= 1.02 for line in lines)
    assert wrapped(["W" * 60], 1.0, 8).count("\n") == 0
