"""HTML of the page besides gradio's components: functions, a table, an error message.

All text from outside, such as class and file names, is escaped here. Colors are CSS variables in
`STYLE`, so that they follow the page's light or dark theme.
"""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from kansformer.interpret.decision import Decision, UnitVote

# Okabe and Ito's colors, safe for the color-blind; lines also differ in dash pattern
STYLE = """
.kan { --function: #0072b2; --base: #d55e00; --grid: #5b6570; --shade: #eef1f4; --bar: #9cc8e3;
  --line: #d9dfe6; --bad: #b3261e; color: var(--body-text-color); font-size: 1rem;
  line-height: 1.45; overflow-wrap: anywhere }
.dark .kan { --function: #56b4e9; --base: #e69f00; --grid: #a9b3bd; --shade: #262d36;
  --bar: #1f5f86; --line: #3a444f; --bad: #ffb4ab }
.kan p, .kan h3 { margin: 0 0 .6rem; color: inherit }
.kan h3 { font-size: 1.05rem; font-weight: 600 }
.kan .note { color: var(--grid); font-size: .9rem }
.kan .cards { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(max(8.2rem, 27%), 1fr)) }
.kan figure { margin: 0; min-width: 0 }
.kan figcaption { font-size: .9rem; overflow-wrap: anywhere }
.kan figcaption b { display: block }
.kan svg { display: block; width: 100%; height: auto; font-size: 12px }
.kan svg text { fill: var(--grid) }
.kan svg .shade { fill: var(--shade) }
.kan svg .axis { stroke: var(--grid); stroke-width: .6 }
.kan svg .function { fill: none; stroke: var(--function); stroke-width: 2.4 }
.kan svg .base { fill: none; stroke: var(--base); stroke-width: 1.5; stroke-dasharray: 5 3 }
.kan svg .here { fill: var(--body-text-color); stroke: var(--body-background-fill);
  stroke-width: 1.2 }
.kan .key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .7rem 0 .5rem;
  font-size: .85rem; color: var(--grid) }
.kan .key svg { display: inline-block; width: 1.8rem; height: .7rem; margin-right: .35rem }
.kan .bad { color: var(--bad); overflow-wrap: anywhere }
.kan table, .kan thead, .kan tr { border: 0 !important }
.kan table { width: 100%; border-collapse: collapse; font-size: .95rem }
.kan th { text-align: left; font-weight: 600 }
.kan td, .kan th { padding: .35rem .5rem; border: 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; vertical-align: middle }
.kan td img { width: 48px; height: 48px; object-fit: cover; border-radius: 4px; margin: 0;
  max-width: none }
.kan td.chance { background: linear-gradient(var(--bar), var(--bar)) left / var(--share) 100%
  no-repeat; white-space: nowrap; min-width: 6rem }
"""
WIDTH, HEIGHT = 180, 120  # of a card's drawing, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 34, 175, 6, 101
THUMBNAIL = 96  # pixels


def message(text: str) -> str:
    """An error message of one line."""
    return f'<div class="kan"><p class="bad" role="alert">{escape(text)}</p></div>'


def no_functions() -> str:
    """The text for a model without learned functions."""
    return (
        '<div class="kan"><p class="note">This model has no learned functions to show: its blocks'
        " are MLPs, or it has only one class.</p></div>"
    )


def functions(decision: Decision, class_names: Sequence[str]) -> str:
    """How the learned functions of the last block contributed to the decision, a card per unit."""
    winner, rival = (escape(class_names[i]) for i in (decision.winner, decision.rival))
    times = math.exp(min(decision.lead, 20))
    verb, preposition = ("add", "to") if decision.gain >= 0 else ("subtract", "from")
    limits = _limits(decision.votes)
    cards = "".join(_card(vote, limits) for vote in decision.votes)
    return f"""<div class="kan"><h3>How the learned functions contributed</h3>
<p><b>{winner}</b> leads the second class, <b>{rival}</b>, by {decision.lead:.2f} in log-odds: it is
{times:,.{0 if times > 10 else 1}f} times as likely. Together, the learned functions of the last
block {verb} {abs(decision.gain):.2f} {preposition} this lead; the rest comes from other parts of
the model. These are the hidden units with the largest contributions, each with its value in this
picture:</p>
<div class="cards">{cards}</div>
<p class="key">{_key("function", "contribution to the lead")}
{_key("base", "without the splines")}
<span><svg viewBox="0 0 28 10"><circle class="here" cx="14" cy="5" r="4"/></svg>this picture</span>
<span><svg viewBox="0 0 28 10"><rect class="shade" width="28" height="10"/></svg>outside the
splines' grid</span></p>
<p class="note">Each curve shows the contribution for every value of the unit; everything else is
held as in this picture.</p></div>"""


def _key(line: str, text: str) -> str:
    drawn = f'<svg viewBox="0 0 28 10"><path class="{line}" d="M0 5H28"/></svg>'
    return f"<span>{drawn}{text}</span>"


def _limits(votes: Sequence[UnitVote]) -> tuple[float, float]:
    """The lowest and the highest value on all cards, including 0."""
    every = [float(f(line)) for v in votes for line in (v.gains, v.base_gains) for f in (min, max)]
    low, high = min(0.0, *every), max(0.0, *every)
    return low, max(high, low + 1e-6)


def _card(vote: UnitVote, limits: tuple[float, float]) -> str:
    low, high = limits
    first, last = float(vote.x[0]), float(vote.x[-1])

    def across(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (x - first) / (last - first), 1)

    def down(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (y - low) / (high - low), 1)

    def path(line: Sequence[float]) -> str:
        points = zip(vote.x.tolist(), line, strict=True)
        return "M" + "L".join(f"{across(x)} {down(y)}" for x, y in points)

    gains = vote.gains.tolist()
    step = (last - first) / (len(gains) - 1)
    dots = [(x, gains[round((x - first) / step)]) for x in vote.values.tolist()]
    if len(dots) == 1:
        dots = [(dots[0][0], vote.gain)]
    shades = [(LEFT, across(vote.grid[0])), (across(vote.grid[1]), RIGHT)]
    effect = f"{'adds' if vote.gain >= 0 else 'subtracts'} {abs(vote.gain):.2f}"
    at = f" at {_number(round(dots[0][0], 1))}" if len(dots) == 1 else ""
    parts = [
        *(f'<rect class="shade" x="{a}" y="{TOP}" width="{b - a:.1f}" height="{BOTTOM - TOP}"/>'
          for a, b in shades if b > a),
        f'<path class="axis" d="M{LEFT} {down(0)}H{RIGHT}M{LEFT} {TOP}V{BOTTOM}"/>',
        *(f'<text x="{LEFT - 4}" y="{down(y) + 3.5}" text-anchor="end">{_number(y)}</text>'
          for y in _ticks(low, high)),
        *(f'<text x="{across(x)}" y="{BOTTOM + 13}" text-anchor="middle">{_number(x)}</text>'
          for x in _ticks(first, last)),
        f'<path class="function" d="{path(gains)}"/>',
        f'<path class="base" d="{path(vote.base_gains.tolist())}"/>',
        *(f'<circle class="here" cx="{across(x)}" cy="{down(y)}" r="{4.5 if len(dots) == 1 else 2}"'
          "/>" for x, y in dots),
    ]  # fmt: skip
    return (
        f"<figure><figcaption>unit {vote.unit}{at} <b>{effect}</b></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Function of unit {vote.unit},'
        f'{at} {effect}">{"".join(parts)}</svg></figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high, including 0 if it is in the range."""
    rough = (high - low) / 3
    step = 10 ** math.floor(math.log10(rough))
    step *= next(factor for factor in (5, 2, 1) if factor * step <= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def table(answers: Sequence[dict[str, Any]], thumbnails: Sequence[Image.Image | None]) -> str:
    """A table of answers of `Predictor.stream`, a row per file, with thumbnails."""
    rows = []
    for answer, picture in zip(answers, thumbnails, strict=True):
        image = "" if picture is None else f'<img src="{_data_uri(picture)}" alt="">'
        name = answer["path"]
        if "error" in answer:
            cause = answer["error"].removeprefix(f"{name}: ")
            cells = f'<td colspan="2" class="bad">{escape(cause)}</td>'
        else:
            best = answer["top"][0]
            percent = f"{100 * best['probability']:.1f} %"
            cells = (f"<td><b>{escape(best['class'])}</b></td><td class=\"chance\""
                     f' style="--share: {percent.replace(" ", "")}">{percent}</td>')  # fmt: skip
        rows.append(f"<tr><td>{image}</td><td>{escape(name)}</td>{cells}</tr>")
    return (
        '<div class="kan"><table><thead><tr><th></th><th>file</th><th>answer</th>'
        f"<th>probability</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy of a picture, of at most THUMBNAIL pixels a side."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def _data_uri(image: Image.Image) -> str:
    packed = io.BytesIO()
    image.save(packed, format="PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()
