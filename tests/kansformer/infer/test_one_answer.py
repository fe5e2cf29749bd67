"""A picture gets the same answer as a path, an open file, bytes, a PIL image or an array."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kansformer.data import load_data, open_image
from kansformer.infer import Predictor
from kansformer.interpret.attention import explain
from kansformer.web.service import Service
from tests.conftest import ROOT

ORIENTATIONS = range(1, 9)
# the file format for each mode
MODES = {
    "L": "png", "1": "png", "P": "png", "RGB": "png", "RGBA": "png", "LA": "png", "PA": "tif",
    "CMYK": "tif", "LAB": "tif", "YCbCr": "jpg", "I;16": "png", "I": "tif", "F": "tif",
}  # fmt: skip


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(ROOT / "weights" / "digits.safetensors")


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return load_data("digits").test.items[:16]  # type: ignore[union-attr, return-value]


def in_mode(digit: np.ndarray, mode: str) -> Image.Image:
    """A digit (8, 8) of uint8 in a mode of Pillow."""
    grey = Image.fromarray(digit)
    if mode == "I;16":
        return Image.fromarray(digit.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(digit.astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray((digit / 255).astype(np.float32))
    if mode in ("LA", "RGBA"):  # black, as opaque as the digit is dark
        layers = Image.new(mode, grey.size, 0)
        layers.putalpha(ImageOps.invert(grey))
        return layers
    if mode == "P":
        return grey.convert("P")
    if mode == "PA":
        palette = grey.convert("P")
        palette.putalpha(ImageOps.invert(grey))
        return palette
    if mode == "LAB":
        return Image.merge("LAB", [grey, *[Image.new("L", grey.size, 128)] * 2])
    return grey.convert("RGB").convert(mode) if mode != "1" else grey.convert("1")


def stored(image: Image.Image, path: Path, orientation: int) -> Path:
    """Saves the picture rotated, with the EXIF orientation that turns it upright."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    image = image if back is None else image.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if path.suffix == ".tif":
        image.save(path, tiffinfo={0x0112: orientation})
    else:
        image.save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


def ways(path: Path) -> Iterator[tuple[str, object]]:
    yield "path", path
    yield "string", str(path)
    yield "bytes", path.read_bytes()
    yield "stream", io.BytesIO(path.read_bytes())
    yield "named stream", ("x", io.BytesIO(path.read_bytes()))
    yield "open file", path.open("rb")
    yield "PIL image", Image.open(path)
    loaded = Image.open(path)
    loaded.load()
    yield "loaded PIL image", loaded


def assert_one_answer(predictor: Predictor, path: Path) -> list[float]:
    """Asserts that all ways give exactly the same probabilities, and returns them."""
    answers = {name: predictor(way, topk=10)[0] for name, way in ways(path)}
    expected = answers["path"]
    assert "top" in expected, expected
    for name, answer in answers.items():
        assert answer.get("top") == expected["top"], (path.name, name, answer)
    by_index = {row["index"]: row["probability"] for row in expected["top"]}
    return [by_index[index] for index in sorted(by_index)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the test leaves files open
@pytest.mark.parametrize("mode", MODES)
def test_every_way_gives_one_answer(
    predictor: Predictor, digits: np.ndarray, tmp_path: Path, mode: str
) -> None:
    for number, digit in enumerate(digits):
        orientation = ORIENTATIONS[number % 8]
        name = f"{number}.{MODES[mode]}"
        path = stored(in_mode(digit, mode), tmp_path / name, orientation)
        probabilities = assert_one_answer(predictor, path)
        if mode in ("L", "P", "RGB", "CMYK", "RGBA", "LA", "I;16", "I", "F"):
            (plain,) = predictor(digit, topk=10)
            expected = {row["index"]: row["probability"] for row in plain["top"]}
            assert probabilities == pytest.approx([expected[i] for i in range(10)], abs=1e-6)


def test_arrays_are_accepted_or_rejected_with_the_reason(
    predictor: Predictor, digits: np.ndarray
) -> None:
    digit = digits[0]
    (expected,) = predictor(Image.fromarray(digit))
    color = np.repeat(digit[:, :, None], 3, axis=2)
    clear = np.dstack([np.zeros_like(color), 255 - digit])
    for pixels in (digit, color, clear, np.asfortranarray(digit), digit.astype(np.uint16) * 257):
        (answer,) = predictor(pixels)
        assert answer["top"] == expected["top"]
    assert len(predictor(list(digits))) == len(digits)
    for wrong, word in (
        (digit / 255, "type float64"), (digit[None, None], r"shape (1, 1, 8, 8)"),
        (color.transpose(2, 0, 1), "shape (3, 8, 8)"), (digit.astype(np.int64), "int64"),
        (torch.zeros(3, 8, 8), "Tensor"), (digit[:0], "shape (0, 8)"),
    ):  # fmt: skip
        (answer,) = predictor(wrong)
        assert word in answer["error"]
        assert "\n" not in answer["error"]


def test_bad_pictures_in_memory_get_an_error_each(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no picture")
    text = (tmp_path / "text.txt").open()
    answers = predictor([b"no picture", io.BytesIO(b""), text, 7])  # type: ignore[list-item]
    text.close()
    words = ("known format", "known format", "mode 'rb'", "cannot be read as a picture")
    for answer, word in zip(answers, words, strict=True):
        assert word in answer["error"]


def test_all_digits_in_every_mode_and_orientation(predictor: Predictor, tmp_path: Path) -> None:
    """200 digits per mode, in all orientations, as path, open file, bytes and PIL image."""
    train = load_data("digits").train.items
    for mode in ("I;16", "LA", "PA", "CMYK", "LAB"):
        suffix = MODES[mode]
        paths = [
            stored(in_mode(digit, mode), tmp_path / f"{mode[:2]} {number}.{suffix}", 1 + number % 8)
            for number, digit in enumerate(train[:200])
        ]
        by_path = predictor(paths, topk=10)
        in_memory = [path.read_bytes() for path in paths]
        for pictures in (in_memory, map(io.BytesIO, in_memory),
                         [Image.open(io.BytesIO(data)) for data in in_memory]):  # fmt: skip
            answers = predictor(pictures, topk=10)
            assert [a["top"] for a in answers] == [a["top"] for a in by_path]
        upright = predictor([in_mode(digit, mode) for digit in train[:200]], topk=10)
        assert [a["top"] for a in upright] == [a["top"] for a in by_path]


def test_explanations_and_the_page_use_the_same_picture(
    predictor: Predictor, digits: np.ndarray, tmp_path: Path
) -> None:
    for number, mode in enumerate(("I;16", "LA")):
        path = stored(in_mode(digits[number], mode), tmp_path / f"{mode[0]}.png", 6)
        (expected,) = predictor(path, topk=10)
        by_path = explain(predictor.model, path)
        with Image.open(path) as image:
            assert np.array_equal(explain(predictor.model, image), by_path)
        service = Service(predictor, "digits")
        look = service.look(path)
        assert look.top[0] == expected["top"][0]
        assert np.array_equal(look.attention, by_path)
        (answer,) = service.answers([("x.png", path.read_bytes())], topk=10)
        assert answer["top"] == expected["top"]
        image = open_image(path)
        assert torch.equal(
            predictor.model.preprocessing(Image.open(path)), predictor.model.preprocessing(image)
        )
