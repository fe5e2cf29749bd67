"""How figures look, and how they become a PNG, or an SVG within a page.

Colours are Okabe and Ito's, which the colour-blind can tell apart. Texts from outside, such as
class names, may be in any script: each text gets the fonts of this machine that have its letters.
matplotlib is imported only where it is used.
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
    # matplotlib before 3.11 cannot be imported by a user without a home folder
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)

MOST_PIXELS_PER_INCH = 104  # in a page, where a figure is at most as wide as its column
LONGEST = 200  # letters of a name that are looked at when it is shortened


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

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
# black and white that stay what they are in every theme, for letters on a coloured ground
BLACK, WHITE = "#010101", "#fefefe"


def new_figure(look: Theme, width: float, height: float, dpi: int = 150) -> Figure:
    """An empty figure, bound to no window; inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor=look.paper)


def style_axis(axis: Any, look: Theme) -> None:
    """Quiet axes: two spines, small ticks."""
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
    """A figure of the light theme as an SVG element for a page that defines `css_colours`.

    So one drawing serves light and dark, and its text stays text.

    Args:
        words: what it shows, for those who cannot see it.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kansformer"}):
        text = _saved(figure, "svg", metadata={"Date": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names that several figures would share
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for name, colour in asdict(THEMES["light"]).items():
        text = text.replace(colour, f"var(--{name})")
    width, height = figure.get_size_inches()
    head = (
        f'<svg role="img" aria-label="{escape(words)}" xmlns="http://www.w3.org/2000/svg"'
        f' viewBox="0 0 {72 * width:g} {72 * height:g}"'
        f' style="max-width: {round(MOST_PIXELS_PER_INCH * width)}px">'
    )
    return head + text[text.index(">") + 1 :].strip()


def colour_map(name: str) -> Colormap:
    """One of matplotlib's colour maps."""
    from matplotlib import colormaps

    return colormaps[name]


def css_colours(theme: str) -> str:
    """The colours of a theme as CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in asdict(THEMES[theme]).items())


def fit_to_show(name: str) -> str:
    """A name without what cannot be printed, as bytes of a file name that are no UTF-8."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def shortened(name: str, inches: float, size: float) -> str:
    """A name on one line, no wider than `inches`: the middle of a longer one becomes "…".

    Both ends stay, since names of one data set often begin alike.

    Args:
        size: of the letters, points.
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
    """Different names, each `shortened`, that stay different.

    Names that would look the same are shown without their common beginning, and if that does not
    help, by their place in the list.
    """
    shown = [shortened(name, inches, size) for name in names]
    for likeness in [label for label, count in Counter(shown).items() if count > 1]:
        alike = [place for place, label in enumerate(shown) if label == likeness]
        letters = zip(*(fit_to_show(names[place]) for place in alike), strict=False)
        common = "".join(own[0] for own in takewhile(lambda own: len(set(own)) == 1, letters))
        start = len(re.sub(r"\w+$", "", common)) or len(common)  # whole words, if there are some
        for place in alike:
            shown[place] = shortened("…" + fit_to_show(names[place])[start:], inches, size)
    counts = Counter(shown)
    return [
        label if counts[label] == 1 else f"{shortened(label, inches / 2, size)} ({place})"
        for place, label in enumerate(shown)
    ]


def wrapped(words: Sequence[str], inches: float, size: float) -> str:
    """Words on as few lines as fit into `inches`; one that is too long is shortened.

    Args:
        words: kept together; what may be broken at its spaces comes as several.
        size: of the letters, points.
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
        size: of the letters, points.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family=_families(text), size=size)
    with _missing_glyphs_ignored():
        return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def drawable_names(names: Sequence[str], what: str = "class") -> tuple[str, ...]:
    """Names as a PNG can show them: "class 3" for one with letters that no font here has.

    Args:
        what: they are names of.
    """
    _find_families("".join(names))
    return tuple(f"{what} {index}" if _missing(name) else name for index, name in enumerate(names))


def font_hint(names: Sequence[str]) -> str | None:
    """A line that says which names no font of this machine can draw; None if all can be drawn."""
    _find_families("".join(names))
    lost = [name for name in names if _missing(name)]
    if not lost:
        return None
    example = fit_to_show(lost[0])
    example = example if len(example) <= 40 else example[:39] + "…"
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return (
        f"note: no font on this machine has all letters of {example}{more}; PNG figures show a"
        ' substitute such as "class 3". Install a font for the script, such as one of Noto Sans'
    )


_FAMILIES: dict[str, str | None] = {}  # by letter: a family that draws it; None if there is none


def _find_families(text: str) -> None:
    """Fills `_FAMILIES` for the letters of a text. ASCII needs no search."""
    wanted = {c for c in text if not c.isascii()} - _FAMILIES.keys()
    for family, path in _fonts() if wanted else ():
        found = _drawn_by(path, wanted)
        _FAMILIES.update(dict.fromkeys(found, family))
        wanted -= found
        if all(map(_is_invisible, wanted)):
            break
    _FAMILIES.update(dict.fromkeys(wanted))


def _fonts() -> Iterator[tuple[str, str]]:
    """Family and file of the fonts of this machine, the usual one first, then sans serif ones.

    matplotlib's other fonts are left out: they are for mathematics.
    """
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    yield "sans-serif", str(findfont(FontProperties()))
    own = get_data_path()
    files = {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
        and not entry.fname.startswith(own)
    }  # fmt: skip
    yield from sorted(files.items(), key=lambda font: ("Sans" not in font[0], font[0]))


def _drawn_by(path: str, letters: Iterable[str]) -> set[str]:
    """Those of the letters that matplotlib can draw with a font; none of a font of bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        font.set_size(12, 72)
        held = {letter for letter in letters if font.get_char_index(ord(letter))}
        return {c for c in held if font.load_char(ord(c)).width or c.isspace() or _is_invisible(c)}
    except (OSError, RuntimeError, ValueError):
        return set()


def _is_invisible(letter: str) -> bool:
    """Whether a character only tells how its neighbours look, such as a joiner."""
    kind = unicodedata.category(letter)
    return kind in ("Cc", "Cf", "Cs") or unicodedata.name(letter, "").startswith("VARIATION SEL")


def _missing(text: str) -> set[str]:
    """The visible letters of a text that no font here has."""
    _find_families(text)
    return {c for c in text if not c.isascii() and not _FAMILIES[c] and not _is_invisible(c)}


def _families(text: str) -> list[str]:
    """The font families that draw a text: the usual one, and others where that lacks a letter."""
    _find_families(text)
    more = dict.fromkeys(_FAMILIES[c] for c in text if not c.isascii())
    return list(dict.fromkeys(["sans-serif", *(family for family in more if family)]))


def _as_drawable(text: str) -> str:
    """A text with escapes such as \\u732b for letters that no font here has."""
    _find_families(text)
    return "".join(
        c if c.isascii() or _FAMILIES[c]
        else "" if _is_invisible(c)
        else c.encode("unicode_escape").decode()
        for c in text
    )  # fmt: skip


def _choose_fonts(figure: Figure, substitute: bool) -> None:
    """Gives every text the fonts that have its letters.

    Args:
        substitute: whether letters that no font has are to be written as escapes.
    """
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    _find_families("".join(text.get_text() for text in texts))
    for text in texts:
        said = text.get_text()
        if said.isascii():
            continue
        if len(families := _families(said)) > 1:
            text.set_fontfamily(families)
        if substitute and _as_drawable(said) != said:
            text.set_text(_as_drawable(said))
    for axes in figure.axes if substitute else ():
        for axis in (axes.xaxis, axes.yaxis):  # would set its labels anew from what it was given
            given = getattr(axis.get_major_formatter(), "func", None)
            names = [label.get_text() for label in axis.get_ticklabels()] if given else []
            if any(_as_drawable(name) != name for name in names):
                axis.set_ticks(axis.get_ticklocs(), list(map(_as_drawable, names)))


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    packed = BytesIO()
    _choose_fonts(figure, substitute=kind == "png")
    with _missing_glyphs_ignored():
        if engine := figure.get_layout_engine():  # once is enough: saving would draw twice for it
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(packed, format=kind, **options)
    return packed.getvalue()


@contextmanager
def _missing_glyphs_ignored() -> Iterator[None]:
    """Without matplotlib's warnings of letters that it cannot draw.

    They come for the text of an SVG, which a browser draws with fonts of its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Glyph .* missing from")
        yield
