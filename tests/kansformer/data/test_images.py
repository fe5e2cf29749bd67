"""Pictures of every mode are read correctly, and errors name the file."""

import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from kansformer.data.images import (
    MAX_BYTES,
    MAX_PIXELS,
    REMEDIES,
    PictureError,
    is_image_name,
    open_image,
)
from kansformer.errors import UserError


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_grey_and_color_are_unchanged(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert open_image(saved(grey, tmp_path / "g.png")).mode == "L"
    assert np.array_equal(open_image(tmp_path / "g.png"), grey)
    color = Image.new("RGB", (4, 4), (1, 2, 3))
    assert open_image(saved(color, tmp_path / "c.png")).getpixel((0, 0)) == (1, 2, 3)


def test_transparency_is_composited_over_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    image = open_image(saved(rgba, tmp_path / "a.png"))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (255, 255, 255)]

    grey = Image.new("LA", (2, 1), (0, 128))
    assert open_image(saved(grey, tmp_path / "la.png")).getpixel((0, 0)) == 127

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    image = open_image(saved(palette, tmp_path / "p.png", transparency=1))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]


def test_palette_cmyk_and_one_bit(tmp_path: Path) -> None:
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert open_image(saved(palette, tmp_path / "p.gif")).getpixel((0, 0)) == (10, 20, 30)
    cmyk = Image.new("RGB", (8, 8), (200, 100, 50)).convert("CMYK")
    pixel = open_image(saved(cmyk, tmp_path / "c.jpg", quality=100)).getpixel((4, 4))
    assert np.abs(np.array(pixel) - (200, 100, 50)).max() <= 3
    bit = Image.new("1", (1, 1), 1)
    assert open_image(saved(bit, tmp_path / "b.png")).getpixel((0, 0)) == 255


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("d.png", "d.tif"):
        image = open_image(saved(Image.fromarray(values), tmp_path / name))
        assert np.asarray(image).tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("dtype", "white"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1.0)]
)
def test_scaling_does_not_depend_on_the_picture(tmp_path: Path, dtype: type, white: float) -> None:
    whole = (np.linspace(0, 1, 64).reshape(8, 8) * white).astype(dtype)
    bright = saved(Image.fromarray(whole), tmp_path / "bright.tif")
    dark = saved(Image.fromarray(whole[:2]), tmp_path / "dark.tif")
    assert np.array_equal(np.asarray(open_image(bright))[:2], open_image(dark))
    expected = (whole * (255 / white)).round()
    assert np.array_equal(open_image(bright), expected)


def test_levels_of_a_data_set(tmp_path: Path) -> None:
    twelve = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = saved(Image.fromarray(twelve), tmp_path / "12 bits.tif")
    assert len(np.unique(open_image(path))) == 17
    image = open_image(path, levels={"I;16": (0, 4095)})
    assert np.array_equal(image, (twelve / 4095 * 255).round())
    signed = Image.fromarray(np.array([[-1000, 0, 3095, 9999]], dtype=np.int32))
    levels = {"I": (-1000, 3095)}
    assert np.asarray(open_image(signed, levels=levels)).tolist() == [[0, 62, 255, 255]]
    plain = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert np.array_equal(open_image(plain, levels=levels), plain)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 70_000]], np.int32), "from 0 to 70000"),
        (np.array([[-1, 7]], np.int32), "from -1 to 7"),
        (np.array([[0, 255]], np.float32), "from 0 to 255"),
    ],
)
def test_values_beyond_the_default_levels_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(PictureError, match=message) as caught:
        open_image(Image.fromarray(values))
    assert caught.value.kind == "out-of-range"
    mode = Image.fromarray(values).mode
    low, high = float(values.min()), float(values.max())
    image = open_image(Image.fromarray(values), levels={mode: (low, high)})
    assert np.asarray(image).tolist() == [[0, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8] = 255  # one bright corner, and not square
    stored = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "o.png", exif=exif)
    transpose = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)  # fmt: skip
    expected = stored if transpose is None else stored.transpose(transpose)
    assert np.array_equal(open_image(path), expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F", "LA", "I;16"]
)
def test_any_mode_becomes_grey_or_color(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "m.tif"
    try:
        Image.new(mode, (5, 4)).save(path)
    except (OSError, KeyError):
        path = tmp_path / "m.png"
        Image.new(mode, (5, 4)).save(path)
    image = open_image(path)
    assert image.mode in ("L", "RGB")
    assert image.size == (5, 4)


def broken_files(folder: Path) -> dict[str, Path]:
    """Files that cannot be read, by words of their error messages."""
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "JPEG")
    files = {
        "damaged": ("cut.jpg", whole.getvalue()[:-700]),
        "not a picture": ("text.png", b"this is no picture"),
        "not a picture ": ("empty.jpg", b""),
        "more pixels": ("bomb.png", huge_png(20_000, 20_000)),
        "more pixels ": ("large.png", huge_png(10_000, 9_500)),
    }
    paths = {}
    for word, (name, data) in files.items():
        (folder / name).write_bytes(data)
        paths[word] = folder / name
    paths["no such file"] = folder / "missing.png"
    paths["a folder"] = folder
    return paths


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header gives a large size, without pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_errors_name_the_file_and_the_cause_in_one_line(tmp_path: Path) -> None:
    for word, path in broken_files(tmp_path).items():
        with pytest.raises(UserError, match=word.strip()) as caught:
            open_image(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_number_of_pixels_is_checked_before_decoding() -> None:
    assert 10_000 * 9_500 > MAX_PIXELS
    with pytest.raises(UserError, match="more pixels"):
        open_image(io.BytesIO(huge_png(10_000, 9_500)), "upload")


def test_the_file_size_is_checked_before_reading(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (9, 9)), tmp_path / "heavy.png")
    os.truncate(path, MAX_BYTES)  # sparse
    assert open_image(path).size == (9, 9)
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(
        PictureError, match="has 357,913,941 bytes, more than the limit of 357,913,940"
    ):
        open_image(path)


def test_broken_links_and_pipes_have_specific_messages(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("lost.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would block forever
    for name, words, kind in (
        ("link.png", r"a broken link \(to lost.png\); fix", "link-to-nowhere"),
        ("circle.png", "cannot be read", "unreadable"),
        ("pipe.png", "not a regular file; remove it", "no-file"),
    ):
        with pytest.raises(PictureError, match=f"{name}: {words}") as caught:
            open_image(tmp_path / name)
        assert caught.value.kind == kind
        assert kind in REMEDIES


def test_a_picture_error_can_be_pickled(tmp_path: Path) -> None:
    with pytest.raises(PictureError) as caught:
        open_image(tmp_path / "none.png")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.kind) == (str(caught.value), "missing")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
@settings(deadline=None, max_examples=40)
def test_a_jpeg_is_never_decoded_below_the_least_side(width: int, height: int, least: int) -> None:
    file = io.BytesIO()
    picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    picture.save(file, "JPEG")
    full, fast = open_image(file), open_image(file, at_least=least)
    scale = max(s for s in (1, 2, 4, 8) if s == 1 or min(width, height) >= s * least)
    assert full.size == (width, height)
    assert fast.size == (-(-width // scale), -(-height // scale))
    if scale == 1:
        assert np.array_equal(full, fast)
    else:
        assert min(fast.size) >= least
        # incomplete JPEG blocks at the edges are padded by repeating the last pixels
        gaps = (0, -height % scale), (0, -width % scale), (0, 0)
        padded = Image.fromarray(np.pad(np.array(full), gaps, mode="edge"))
        assert np.abs(np.array(padded.reduce(scale)).astype(int) - fast).mean() < 2


def test_reduced_decoding_applies_to_jpegs_and_reads_the_whole_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.fromarray(noise), tmp_path / "t.jpg", exif=exif)
    assert open_image(path, at_least=8).size == (8, 12)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(PictureError, match="damaged"):
        open_image(path, at_least=8)
    png = saved(Image.fromarray(noise), tmp_path / "t.png")
    assert np.array_equal(open_image(png, at_least=8), noise)


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "script.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(UserError, match="not a picture"):
        open_image(path)


def test_image_names() -> None:
    assert is_image_name("a b.JPEG")
    assert not any(map(is_image_name, ("a.txt", ".hidden.png", "._a.jpg", "Thumbs.db", "png")))


def test_exif_rotation_equals_pillows(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.new("RGB", (6, 4)), tmp_path / "x.jpg", exif=exif)
    with Image.open(path) as image:
        assert open_image(path).size == ImageOps.exif_transpose(image).size == (4, 6)
