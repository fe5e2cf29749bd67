"""HTML of the page: text from outside never becomes markup, and drawings are accurate."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from kansformer.interpret.decision import Decision, UnitVote
from kansformer.web import html

EVIL = "<script>alert(1)</script> & \"'"


def parse(text: str) -> ET.Element:
    """The piece parsed as XML."""
    return ET.fromstring(text.replace("&nbsp;", " "))


def vote(values: list[float]) -> UnitVote:
    x = torch.linspace(-3, 5, 101)
    gains = x.sin()
    at = torch.tensor(values)
    return UnitVote(7, float(at[0].sin()), x, gains, 0.5 * gains, at, (-3.0, 3.0))


@pytest.mark.parametrize("values", [[1.25], [-2.0, 0.5, 4.0]])
def test_dots_lie_on_the_curve_at_the_units_values(values: list[float]) -> None:
    drawn = parse(html.functions(Decision(0, 1, 2.0, -0.5, [vote(values)]), [EVIL, "b"]))
    card = drawn.find(".//figure")
    assert card is not None
    (line,) = [e for e in card.iter("path") if e.get("class") == "function"]
    numbers = np.array([float(n) for n in re.findall(r"-?[\d.]+", line.get("d", ""))])
    across, down = numbers.reshape(-1, 2).T
    dots = [e for e in card.iter("circle") if e.get("class") == "here"]
    assert len(dots) == len(values)
    for dot, value in zip(dots, values, strict=True):
        x = float(dot.get("cx", ""))
        assert x == pytest.approx(np.interp(value, [-3, 5], [across[0], across[-1]]), abs=0.1)
        assert float(dot.get("cy", "")) == pytest.approx(np.interp(x, across, down), abs=2)
    (shade,) = [e for e in card.iter("rect") if e.get("class") == "shade"]
    assert float(shade.get("x", "")) == pytest.approx(
        np.interp(3, [-3, 5], [across[0], across[-1]]), abs=0.1
    )


def test_texts_name_the_classes_and_the_sign_of_contributions() -> None:
    subtracting = html.functions(Decision(0, 1, 2.0, -0.5, [vote([4.0])]), ["cat", "dog"])
    words = " ".join("".join(parse(subtracting).itertext()).split())
    assert "cat leads the second class, dog, by 2.00 in log-odds: it is 7.4 times" in words
    assert "the last block subtract 0.50 from this lead" in words
    assert f"unit 7 at 4 subtracts {abs(np.sin(4)):.2f}" in words
    adding = html.functions(Decision(0, 1, 2.0, 0.5, [vote([1.0])]), ["cat", "dog"])
    assert "the last block add 0.50 to this lead" in " ".join(adding.split())
    assert f"adds {np.sin(1):.2f}" in adding


def test_names_from_outside_are_escaped() -> None:
    answers = [
        {"path": EVIL, "top": [{"class": EVIL, "index": 0, "probability": 0.5}]},
        {"path": EVIL, "error": f"{EVIL}: damaged; replace it"},
    ]
    grey = Image.new("L", (2, 2))
    for piece in (
        html.message(EVIL),
        html.functions(Decision(0, 1, 2.0, -0.5, [vote([1.0])]), [EVIL, EVIL]),
        html.table(answers, [grey, None]).replace('alt="">', 'alt=""/>'),
    ):
        parsed = parse(piece)
        assert not list(parsed.iter("script"))
        assert EVIL in "".join(parsed.itertext())


def test_flat_functions_are_drawn() -> None:
    flat = UnitVote(0, 0.0, torch.linspace(0, 1, 101), torch.zeros(101), torch.zeros(101),
                    torch.tensor([0.5]), (0.0, 1.0))  # fmt: skip
    drawn = html.functions(Decision(0, 1, 0.0, 0.0, [flat]), ["a", "b"])
    assert "nan" not in drawn.lower()
    assert "inf" not in drawn.lower()
