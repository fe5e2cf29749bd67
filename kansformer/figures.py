"""How figures look and what becomes of them: PNG, or SVG within a page.

Colours are Okabe and Ito's, which the colour-blind can tell apart. matplotlib is imported where it
is used, so that this file costs nothing.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import asdict, dataclass
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 62, 104  # least and most in a page: letters of 9 points stay legible


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
    least, most = (round(width * scale) for scale in PIXELS_PER_INCH)
    head = (
        f'<svg role="img" aria-label="{escape(words)}" xmlns="http://www.w3.org/2000/svg"'
        f' viewBox="0 0 {72 * width:g} {72 * height:g}"'
        f' style="min-width: {least}px; max-width: {most}px">'
    )
    return head + text[text.index(">") + 1 :].strip()


def css_colours(theme: str) -> str:
    """The colours of a theme as CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in asdict(THEMES[theme]).items())


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    packed = BytesIO()
    with warnings.catch_warnings():
        # class names may be in any script; a browser has its letters where matplotlib has not
        warnings.filterwarnings("ignore", message="(?s).*Glyph .* missing from")
        if engine := figure.get_layout_engine():  # once is enough: saving would draw twice for it
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(packed, format=kind, **options)
    return packed.getvalue()
