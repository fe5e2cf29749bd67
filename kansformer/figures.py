"""The style of figures, their text in any script, and their output as PNG or as SVG for a page.

Colors are those of Okabe and Ito, which color-blind people can distinguish. User-provided text,
such as class names, may be in any script: each text is drawn with installed fonts that have its
letters. matplotlib is imported only where it is used.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import unicodedata
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from html import escape
from io import BytesIO
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from models.cache import cache_folder

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

if cache_folder() is None and "MPLCONFIGDIR" not in os.environ:
    # matplotlib before 3.11 cannot be imported without a writable home folder
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)

MOST_PIXELS_PER_INCH = 104  # upper limit of a figure's size in a page
LONGEST = 200  # limit in letters for a shortened name, which bounds the measuring of its width


@dataclass(frozen=True)
class Theme:
    """Colors of a figure."""

    paper: str
    ink: str
    muted: str
    histogram: str
    outside: str
    function: str
    base: str


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#5b6570", "#d9dfe6", "#f3f4f6", "#0072b2", "#d55e00"),
    "dark": Theme("#14181d", "#eef1f4", "#a9b3bd", "#3a444f", "#1e242b", "#56b4e9", "#e69f00"),
}
# black and white that are the same in every theme, for letters on a colored background
BLACK, WHITE = "#010101", "#fefefe"


def new_figure(look: Theme, width: float, height: float, dpi: int = 150) -> Figure:
    """An empty figure of a size in inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor=look.paper)


def style_axis(axis: Any, look: Theme) -> None:
    """Sets plain axes: two spines, small ticks."""
    axis.set_facecolor(look.paper)
    axis.tick_params(colors=look.muted, labelsize=7.5, length=2, pad=2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(look.muted)
    axis.xaxis.label.set_color(look.ink)
    axis.yaxis.label.set_color(look.ink)


def as_png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    return _saved(figure, "png")


def as_svg(figure: Figure, words: str) -> str:
    """A figure of the light theme as an SVG element for a page that defines `css_colors`.

    Its colors are CSS variables, so it follows the page's theme, and its text remains text.

    Args:
        words: alternative text for screen readers.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kansformer"}):
        text = _saved(figure, "svg", metadata={"Date": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # ids that would not be unique in a page
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for name, color in asdict(THEMES["light"]).items():
        text = text.replace(color, f"var(--{name})")
    width, height = figure.get_size_inches()
    head = (
        f'<svg role="img" aria-label="{escape(words)}" xmlns="http://www.w3.org/2000/svg"'
        f' viewBox="0 0 {72 * width:g} {72 * height:g}"'
        f' style="max-width: {round(MOST_PIXELS_PER_INCH * width)}px">'
    )
    return head + text[text.index(">") + 1 :].strip()


def color_map(name: str) -> Colormap:
    """The matplotlib color map of this name."""
    from matplotlib import colormaps

    return colormaps[name]


def css_colors(theme: str) -> str:
    """The colors of a theme as CSS variables."""
    return " ".join(f"--{name}: {color};" for name, color in asdict(THEMES[theme]).items())


def fit_to_show(name: str) -> str:
    """A name with unprintable characters replaced, such as bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def shortened(name: str, inches: float, size: float) -> str:
    """A name on one line, no wider than `inches`: in longer names "…" replaces the middle.

    Both ends are kept, since names in a data set often have a common beginning.

    Args:
        size: font size in points.
    """
    name = fit_to_show(name)
    if len(name) <= LONGEST and text_width(name, size) <= inches:
        return name

    def cut(kept: int) -> str:
        tail = kept // 3
        return name[: kept - tail] + "…" + name[len(name) - tail :]

    most = min(len(name) - 1, LONGEST)
    kept = bisect_right(range(most + 1), inches, key=lambda n: text_width(cut(n), size)) - 1
    return cut(max(kept, 1))


def shortened_names(names: Sequence[str], inches: float, size: float) -> list[str]:
    """Shortens distinct names as `shortened` does, so that the results are distinct too.

    Where shortened names would coincide, their common beginning is cut off instead; if that does
    not help, the index in the list is appended.
    """
    labels = [shortened(name, inches, size) for name in names]
    for repeated in [label for label, count in Counter(labels).items() if count > 1]:
        indices = [index for index, label in enumerate(labels) if label == repeated]
        columns = zip(*(fit_to_show(names[index]) for index in indices), strict=False)
        common = "".join(letters[0] for letters in takewhile(lambda c: len(set(c)) == 1, columns))
        start = len(re.sub(r"\w+$", "", common)) or len(common)  # cut between words if possible
        for index in indices:
            labels[index] = shortened("…" + fit_to_show(names[index])[start:], inches, size)
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else f"{shortened(label, inches / 2, size)} ({index})"
        for index, label in enumerate(labels)
    ]


def wrapped(words: Sequence[str], inches: float, size: float) -> str:
    """Words on as few lines of width `inches` as possible; words that are too long are shortened.

    Args:
        words: a word is never broken, even at its spaces.
        size: font size in points.
    """
    lines: list[str] = []
    for word in words:
        word = shortened(word, inches, size)
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def text_width(text: str, size: float) -> float:
    """Width of one line of text in inches, in the fonts that figures are drawn with.

    Args:
        size: font size in points.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family=_families(text), size=size)
    with _missing_glyphs_ignored():
        return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def drawable_names(names: Sequence[str], what: str = "class") -> tuple[str, ...]:
    """Names that a PNG can show: "class 3" replaces one with letters that no installed font has.

    Args:
        what: noun in the replacement.
    """
    _find_families("".join(names))
    return tuple(f"{what} {index}" if _missing(name) else name for index, name in enumerate(names))


def font_hint(names: Sequence[str]) -> str | None:
    """A note on names that no installed font can draw; None if all can be drawn."""
    _find_families("".join(names))
    undrawable = [name for name in names if _missing(name)]
    if not undrawable:
        return None
    example = fit_to_show(undrawable[0])
    example = example if len(example) <= 40 else example[:39] + "…"
    more = f" and {len(undrawable) - 1} more" if len(undrawable) > 1 else ""
    return (
        f"note: no font on this machine has all letters of {example}{more}; PNG figures show"
        ' substitutes such as "class 3". Install a font for the script, such as a Noto Sans font'
    )


_FAMILIES: dict[str, str | None] = {}  # letter -> a font family that has it; None if there is none


def _find_families(text: str) -> None:
    """Adds the letters of a text to `_FAMILIES`. ASCII letters need no search."""
    missing = {c for c in text if not c.isascii()} - _FAMILIES.keys()
    for family, path in _fonts() if missing else ():
        drawable = _drawn_by(path, missing)
        _FAMILIES.update(dict.fromkeys(drawable, family))
        missing -= drawable
        if all(map(_is_invisible, missing)):
            break
    _FAMILIES.update(dict.fromkeys(missing))


def _fonts() -> Iterator[tuple[str, str]]:
    """Family and file of each installed font: the default, those named "Sans", then the others.

    The other fonts that come with matplotlib are left out: they are for mathematics.
    """
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    yield "sans-serif", str(findfont(FontProperties()))
    matplotlibs = get_data_path()
    files = {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
        and not entry.fname.startswith(matplotlibs)
    }  # fmt: skip
    yield from sorted(files.items(), key=lambda font: ("Sans" not in font[0], font[0]))


def _drawn_by(path: str, letters: Iterable[str]) -> set[str]:
    """The letters that matplotlib can draw with a font; none for a bitmap font."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        font.set_size(12, 72)
        mapped = {c for c in letters if font.get_char_index(ord(c))}
        return {
            c for c in mapped if font.load_char(ord(c)).width or c.isspace() or _is_invisible(c)
        }
    except (OSError, RuntimeError, ValueError):
        return set()


def _is_invisible(letter: str) -> bool:
    """Whether a character has no glyph and only affects its neighbors, such as a joiner."""
    kind = unicodedata.category(letter)
    return kind in ("Cc", "Cf", "Cs") or unicodedata.name(letter, "").startswith("VARIATION SEL")


def _missing(text: str) -> set[str]:
    """The visible letters of a text that no installed font has."""
    _find_families(text)
    return {c for c in text if not c.isascii() and not _FAMILIES[c] and not _is_invisible(c)}


def _families(text: str) -> list[str]:
    """The font families that draw a text: the default, and others for letters that it lacks."""
    _find_families(text)
    families = (_FAMILIES[c] for c in text if not c.isascii())
    return list(dict.fromkeys(["sans-serif", *(family for family in families if family)]))


def _as_drawable(text: str) -> str:
    """A text with escapes such as \\u732b for letters that no installed font has."""
    _find_families(text)
    return "".join(
        c if c.isascii() or _FAMILIES[c]
        else "" if _is_invisible(c)
        else c.encode("unicode_escape").decode()
        for c in text
    )  # fmt: skip


def _choose_fonts(figure: Figure, substitute: bool) -> None:
    """Sets fonts for every text in the figure that have its letters.

    Args:
        substitute: write letters that no font has as escapes.
    """
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    _find_families("".join(text.get_text() for text in texts))
    for text in texts:
        content = text.get_text()
        if content.isascii():
            continue
        if len(families := _families(content)) > 1:
            text.set_fontfamily(families)
        if substitute and _as_drawable(content) != content:
            text.set_text(_as_drawable(content))
    for axes in figure.axes if substitute else ():
        for axis in (axes.xaxis, axes.yaxis):  # an axis with fixed labels resets them on drawing
            fixed = getattr(axis.get_major_formatter(), "func", None)
            names = [label.get_text() for label in axis.get_ticklabels()] if fixed else []
            if any(_as_drawable(name) != name for name in names):
                axis.set_ticks(axis.get_ticklocs(), list(map(_as_drawable, names)))


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    _choose_fonts(figure, substitute=kind == "png")
    with _missing_glyphs_ignored():
        if (
            engine := figure.get_layout_engine()
        ):  # lay out once: savefig would do it by drawing twice
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(file, format=kind, **options)
    return file.getvalue()


@contextmanager
def _missing_glyphs_ignored() -> Iterator[None]:
    """Ignores matplotlib's warnings on letters that it cannot draw.

    It gives them for the text of an SVG, which the browser draws with its fonts.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Glyph .* missing from")
        yield
