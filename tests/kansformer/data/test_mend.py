"""Intact pixels are read despite other defects of the file, and damaged pixels never are."""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from kansformer.data.doctor import examine
from kansformer.data.images import PictureError, decode, open_image
from kansformer.data.mend import END_OF_JPEG, mended
from tests.conftest import write_folder

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
TURNED = PICTURE.transpose(Image.Transpose.ROTATE_270)  # orientation 6


def png(**options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "PNG", **options)
    return file.getvalue()


def long_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("story", "x" * 1_100_000, zip=True)
    return png(pnginfo=info)


def long_unicode_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("story", "y" * 1_100_000, zip=True)
    return png(pnginfo=info)


def bad_checksum_of_metadata() -> bytes:
    chunk = struct.pack(">I4s", 3, b"tEXt") + b"a\0b"
    data = png()
    return data[:33] + chunk + struct.pack(">I", zlib.crc32(b"else")) + data[33:]


def invalid_exif() -> bytes:
    return png(exif=b"Exif\0\0this is no TIFF at all")


@pytest.mark.parametrize(
    "make", [long_text, long_unicode_text, bad_checksum_of_metadata, invalid_exif]
)
def test_invalid_metadata_does_not_affect_the_pixels(make: object, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(make())  # type: ignore[operator]
    assert np.array_equal(open_image(path), PICTURE)
    assert decode(path, "p").stored.note


def exif(*tags: tuple[int, object]) -> bytes:
    values = Image.Exif()
    for tag, value in tags:
        values[tag] = value
    return values.tobytes()


def short_tag(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


def raw_exif(*entries: bytes, rest: bytes = b"") -> bytes:
    """EXIF data with entries that Pillow does not write."""
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + rest


ORIENTATION_6 = short_tag(0x0112, 3, 1, struct.pack("<H", 6))
ODD_EXIF = {
    "a tag of the wrong type": raw_exif(ORIENTATION_6, short_tag(0x0110, 4, 1, b"\1\0\0\0")),
    "a negative rational": raw_exif(
        ORIENTATION_6, short_tag(0x011A, 5, 1, struct.pack("<I", 8 + 2 + 24 + 4)),
        rest=struct.pack("<iI", -72, 1),
    ),
    "text instead of the resolution": raw_exif(ORIENTATION_6, short_tag(0x011A, 2, 3, b"no\0")),
    "a directory beyond the end": raw_exif(
        ORIENTATION_6, short_tag(0x8769, 4, 1, struct.pack("<I", 999_999))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_of_partly_invalid_exif_is_applied(name: str, kind: str) -> None:
    file = io.BytesIO()
    if kind == "TIFF":
        PICTURE.save(file, kind, tiffinfo={0x0112: 6, 0x0110: "model"})
    else:
        options = {} if kind == "PNG" else {"quality": 100, "subsampling": 0}
        options |= {"lossless": True} if kind == "WEBP" else {}
        PICTURE.save(file, kind, exif=ODD_EXIF[name], **options)
    image = open_image(file)
    assert image.size == TURNED.size
    tolerance = 2 if kind == "JPEG" else 0
    assert np.abs(np.asarray(image).astype(int) - np.asarray(TURNED)).mean() <= tolerance


@pytest.mark.parametrize("value", ["six", 0, 9, 250, (6, 6)])
def test_an_invalid_orientation_is_ignored(value: object) -> None:
    try:
        data = png(exif=exif((0x0112, value)))
    except Exception:  # Pillow does not write this value
        data = png(exif=raw_exif(short_tag(0x0112, 2, 4, b"six\0")))
    assert np.array_equal(open_image(data), PICTURE)


JPEGS = {
    "plain": {}, "fine": {"quality": 95, "subsampling": 0}, "optimised": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
}  # fmt: skip


def jpeg(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_is_complete(
    mode: str, options: dict[str, object], missing: int
) -> None:
    data = jpeg(PICTURE.convert(mode), **options)
    assert data.endswith(END_OF_JPEG)
    assert np.array_equal(open_image(data[:-missing]), open_image(data))
    notes = {"it has no end marker", *([""] if mode == "CMYK" else [])}  # libjpeg may accept it
    assert decode(data[:-missing], "j").stored.note in notes
    lazy = Image.open(io.BytesIO(data[:-missing]))
    assert np.array_equal(open_image(lazy), open_image(data))


@given(
    size=st.tuples(st.integers(9, 70), st.integers(9, 70)),
    seed=st.integers(0, 99),
    cut=st.integers(3, 120),
    options=st.sampled_from([*JPEGS.values(), {"progressive": True}]),
)
@settings(deadline=None, max_examples=150)
def test_a_jpeg_that_lacks_pixels_is_damaged(
    size: tuple[int, int], seed: int, cut: int, options: dict[str, object]
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    data = jpeg(Image.fromarray(noise), **options)
    with suppress(PictureError):  # unless only fill bits were cut off
        assert np.array_equal(open_image(data[:-cut]), open_image(data))


def test_damaged_pixels_are_refused() -> None:
    data = png()
    start = data.index(b"IDAT")
    overwritten = data[: start + 4] + bytes(20) + data[start + 24 :]
    for broken in (overwritten, long_text()[:2000], data[: start + 60], jpeg(PICTURE)[:200]):
        with pytest.raises(PictureError):
            open_image(broken)
    assert mended(b"GIF89a") is None
    assert mended(data) is None


def test_the_doctor_reports_repaired_files_as_a_note(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "colors", 3)
    (folder / "red" / "text.png").write_bytes(long_text())
    (folder / "red" / "end.jpg").write_bytes(jpeg(PICTURE)[:-2])
    report = examine(str(folder))
    (finding,) = [f for f in report.findings if f.kind == "mended"]
    assert {Path(path).name for path in finding.files} == {"text.png", "end.jpg"}
    assert finding.severity == "note"
    assert not report.has_errors
