"""Options of predict.py: tables, unknown pictures, mirror images, explanations."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from kansformer.data import open_image
from kansformer.errors import UserError
from kansformer.infer import Predictor
from tests.conftest import ROOT

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predict(command: Command, trained: Path) -> Command:
    weights = ("--weights", trained / "best.safetensors")
    return lambda *arguments: command("predict", *arguments, *weights, "--device", "cpu")


def test_tta_is_the_mean_with_the_mirror_image(trained: Path, colors: Path) -> None:
    weights = trained / "best.safetensors"
    picture = open_image(colors / "red" / "red 1.png")
    plain, augmented = Predictor.load(weights), Predictor.load(weights, tta=True)
    probabilities = [
        {row["class"]: row["probability"] for row in answer["top"]}
        for answer in plain([picture, ImageOps.mirror(picture)])
    ]
    (answer,) = augmented(picture)
    for row in answer["top"]:
        expected = sum(of_view[row["class"]] for of_view in probabilities) / 2
        assert row["probability"] == pytest.approx(expected, abs=1e-7)
    assert probabilities[0] != probabilities[1]


def test_tta_is_refused_for_models_trained_without_mirroring() -> None:
    with pytest.raises(UserError, match="trained without mirrored pictures"):
        Predictor.load(ROOT / "weights" / "digits.safetensors", tta=True)


def test_below_the_confidence_a_picture_is_unknown(predict: Command, colors: Path) -> None:
    status, out, _ = predict(colors / "red", "--json", "--min-confidence", 0)
    probabilities = [answer["top"][0]["probability"] for answer in json.loads(out)]
    bound = sorted(probabilities)[5]
    status, out, _ = predict(colors / "red", "--json", "--min-confidence", bound)
    assert status == 0
    answers = json.loads(out)
    for answer, probability in zip(answers, probabilities, strict=True):
        assert answer["top"][0]["probability"] == probability
        assert answer.get("unknown") == (True if probability < bound else None)
    assert sum("unknown" in answer for answer in answers) == 5
    _, out, _ = predict(colors / "red", "--min-confidence", bound)
    assert sum(line.endswith("  unknown") for line in out.splitlines()) == 5


def test_a_table_has_a_row_for_every_picture(
    predict: Command, colors: Path, tmp_path: Path
) -> None:
    arguments = (colors / "red", "missing.png", colors / "blue", "--min-confidence", 0.5)
    _, out, _ = predict(*arguments, "--json")
    answers = json.loads(out)
    status, out, err = predict(*arguments, "--csv", "-")
    assert status == 0
    assert "missing.png: no such file" in err
    rows = list(csv.DictReader(io.StringIO(out)))
    for row, answer in zip(rows, answers, strict=True):
        assert row["path"] == answer["path"]
        assert row["error"] == answer.get("error", "")
        if "top" in answer:
            assert row["class"] == answer["top"][0]["class"]
            assert float(row["probability"]) == answer["top"][0]["probability"]
            assert row["unknown"] == ("true" if "unknown" in answer else "false")
        else:
            assert row["class"] == row["probability"] == row["unknown"] == ""
    status, printed, _ = predict(*arguments, "--csv", "t.csv")
    assert (status, printed) == (0, "written: t.csv, 21 rows\n")
    assert (tmp_path / "t.csv").read_text() == out


def test_explanations_are_saved_and_listed_in_the_json(
    predict: Command, colors: Path, tmp_path: Path
) -> None:
    before = sorted(colors.rglob("*"))
    pictures = (colors / "red" / "red 1.png", "missing.png", colors / "blue")
    status, out, _ = predict(*pictures, "--explain", "why", "--json")
    assert status == 0
    answers = json.loads(out)
    drawn = [answer["explanation"] for answer in answers if "top" in answer]
    assert sorted(drawn) == sorted(f"why/{path.name}" for path in (tmp_path / "why").iterdir())
    assert len(drawn) == 11
    for name in drawn:
        with Image.open(tmp_path / name) as image:
            assert image.width == image.height >= 300
    assert sorted(colors.rglob("*")) == before


def test_the_default_weights_are_reported(command: Command) -> None:
    status, out, err = command("predict", ROOT / "examples" / "digit.png", "--json")
    assert status == 0
    assert json.loads(out)[0]["top"][0]["class"] == "8"
    assert err == "no --weights given: using digits.safetensors, which knows only digits\n"


def test_a_bad_file_name_is_one_error_with_explanations_too(
    predict: Command, colors: Path, tmp_path: Path
) -> None:
    good = colors / "red" / "red 1.png"
    long = colors / "red" / ("ü" * 125 + "x.png")  # 255 bytes
    long.write_bytes(good.read_bytes())
    for first, second in (("a.png", "b.png"), ("b.png", "a.png"), ("c", "c")):
        (colors / first).symlink_to(second)
    bad = (colors / "a.png", colors / "c", colors / "a.png" / "x.png", "x" * 300, "\n.png")
    status, out, err = predict(good, *bad, long, "--explain", "why", "--json")
    assert status == 0
    answers = json.loads(out)
    assert ["error" in answer for answer in answers] == [False, *[True] * 5, False]
    assert len(err.splitlines()) == 5
    for answer in (answers[0], answers[-1]):
        assert (tmp_path / answer["explanation"]).is_file()
    assert len(list((tmp_path / "why").iterdir())) == 2


def test_a_picture_that_vanishes_is_one_error(
    predict: Command, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = colors / "red" / "red 1.png"

    def vanishing(self: Predictor, *arguments: object, **options: object) -> Iterator[object]:
        for answer in stream(self, *arguments, **options):
            if answer["path"] == str(gone):
                gone.unlink()
            yield answer

    stream = Predictor.stream
    monkeypatch.setattr(Predictor, "stream", vanishing)
    status, out, _ = predict(colors / "red", "--explain", "why", "--json")
    answers = json.loads(out)
    assert status == 0
    assert [a["path"] for a in answers if "error" in a] == [str(gone)]
    assert len(answers) == 10


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://example.org/a.jpg", "URLs are not downloaded; give a local file"),
        ("-", "standard input is not read; give a file"),
        ("void", "a folder without pictures"),
        ("raw", "a folder without pictures in a supported format"),
        ("colors", None),
    ],
)
def test_inputs_other_than_pictures_are_refused_with_a_remedy(
    predict: Command, colors: Path, tmp_path: Path, name: str, words: str | None
) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "1.NEF").touch()
    (colors / "2.nef").touch()
    status, _, err = predict(name, "--json")
    if words is None:
        assert status == 0
        assert "1 picture in unsupported formats (.nef 1)" in err
    else:
        assert status == 2
        assert words in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--min-confidence", 1.5), "--min-confidence must lie between 0 and 1"),
        (("--min-confidence", "nan"), "--min-confidence must lie between 0 and 1"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--csv", "-", "--json"), "both print to stdout"),
        (("--csv", "no/where.csv"), "no/where.csv: its folder does not exist"),
        (("--explain", "colors/red"), "holds the input pictures"),
    ],
)
def test_bad_usage_is_one_line(
    predict: Command, colors: Path, arguments: tuple[object, ...], words: str
) -> None:
    status, out, err = predict(colors / "red", *arguments)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert words in err
