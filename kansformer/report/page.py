"""Renders contents and plots as HTML, with the template page.html next to this file."""

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from kansformer.evaluate.plots import BARS
from kansformer.figures import css_colors
from kansformer.interpret.blocks_drawing import Answer
from kansformer.report.contents import Contents, Inside, Mistake, Sample
from kansformer.words import number

TILE = 96  # approximate side of a picture on the contact sheet, pixels
GAP = 4
THUMBNAIL = 168  # largest side of a mistake's picture, pixels
SMALL = 64  # largest side of pictures that are stored exactly, pixels
NEXT_TO_NOTHING, LITTLE = 0.01, 0.05  # loss of accuracy without splines
CLASSES_LISTED = 1000


def render(contents: Contents, drawn: Mapping[str, str]) -> str:
    """The page as HTML.

    Args:
        drawn: the plots' SVG elements by name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "duration": duration, "shown": shown, "number": number,
    }  # fmt: skip
    inside = contents.inside
    return environment.get_template("page.html").render(
        run=contents,
        summary=contents.summary,
        figures=contents.figures,
        plots={name: Markup(svg) for name, svg in drawn.items()},
        colors={theme: Markup(css_colors(theme)) for theme in ("light", "dark")},
        twin=against_twin(contents.summary),
        mistakes=[(m, uri(thumbnail(m.picture)), uri(thumbnail(m.attention)))
                  for m in contents.mistakes],
        sheet=uri(contact_sheet(contents.samples)) if contents.samples else None,
        mixed=[name for name in ("mixup", "cutmix") if contents.settings.get(name)],
        splines=None if inside is None else worth_of_splines(inside),
        outside=None if inside is None else max(layer.outside or 0 for _, layer in inside.facts),
        listed=contents.figures["per_class"][:CLASSES_LISTED],
        bars=BARS,
    )  # fmt: skip


def against_twin(summary: Mapping[str, Any]) -> str:
    """How the number of parameters compares with the same ViT with MLP blocks."""
    parameters, twin = summary["parameters"], summary["mlp_twin"]["parameters"]
    if summary["model"]["ffn"] == "mlp":
        return "its blocks are MLPs"
    if parameters == twin:
        return "as many as its MLP twin"
    word = "more" if parameters > twin else "fewer"
    return f"{100 * abs(parameters / twin - 1):.1f} % {word} than its MLP twin ({twin:,})"


def worth_of_splines(inside: Inside) -> tuple[str, str]:
    """What the splines contribute: the conclusion, and the figures that support it."""
    shares = [layer.spline_energy for _, layer in inside.facts]
    lost = inside.with_splines - inside.without_splines
    if lost < NEXT_TO_NOTHING:
        verdict = (
            "The splines contribute next to nothing to this model's accuracy: its learned"
            " functions are little more than the base function."
        )
    elif lost < LITTLE:
        verdict = "The splines help a little; the base functions do most of the work."
    else:
        verdict = "The model relies on its splines."
    return verdict, (
        f"With all splines of the blocks set to zero, the accuracy on"
        f" {number(inside.pictures, 'picture')} is {percent(inside.without_splines)}, compared with"
        f" {percent(inside.with_splines)} as trained."
        f" The splines account for {percent(min(shares))} to {percent(max(shares))} of the variance"
        " of a layer's output, the base functions for the rest. This does not show how well a model"
        " trained without splines would do; python -m kansformer.compare does."
    )


def mistakes_in_rows(
    mistakes: Sequence[Mistake],
) -> tuple[list[tuple[str, list[Image.Image]]], list[Answer]]:
    """The arguments of `draw_attention`: a row of pictures, one of attention maps, the answers."""
    answers = [Answer(m.predicted, m.probability, m.true) for m in mistakes]
    rows = [
        ("picture", [m.picture for m in mistakes]),
        ("attention", [m.attention for m in mistakes]),
    ]
    return rows, answers


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """A column per picture: the original on top, its augmented versions below a small gap."""
    columns = [[s.picture.convert("RGB"), *s.augmented] for s in samples]
    side = columns[0][0].width
    tile = side * max(1, TILE // side) if side <= TILE else TILE
    step = tile + GAP
    size = step * len(columns) - GAP, step * len(columns[0])
    sheet = Image.new("RGB", size, "grey")
    for x, column in enumerate(columns):
        for y, picture in enumerate(column):
            method = Image.Resampling.NEAREST if side <= TILE else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((tile, tile), method), (step * x, step * y + GAP * (y > 0)))
    return sheet


def thumbnail(picture: Image.Image) -> Image.Image:
    """An RGB copy, no larger than the page shows it."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def uri(picture: Image.Image) -> str:
    """A picture as a data URI: small ones exactly, others as a JPEG."""
    kind = "PNG" if max(picture.size) <= SMALL else "JPEG"
    return f"data:image/{kind.lower()};base64,{base64.b64encode(packed(picture, kind)).decode()}"


def packed(picture: Image.Image, kind: str) -> bytes:
    """A picture encoded as a file of this kind."""
    file = BytesIO()
    picture.save(file, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return file.getvalue()


def percent(share: float | None) -> str:
    """A share in percent; "–" for an undefined one."""
    return "–" if share is None else f"{100 * share:.2f} %"


def duration(seconds: float) -> str:
    """A duration in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def shown(value: Any) -> str:
    """A setting's value as text for a table."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
