"""Repairs files that a decoder refuses although their pixels are intact."""

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
END_OF_JPEG = b"\xff\xd9"
FILLERS = 8  # number of different endings that a JPEG file without an end is decoded with
# the chunks of a PNG file that determine its pixels and their orientation
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")


def mended(data: bytes) -> tuple[bytes, str] | None:
    """A repaired file with the same pixels, and a description of its defect.

    None if no repair is known. The result may still be damaged, which decoding it will show.
    """
    if data.startswith(PNG):
        stripped = PNG + b"".join(_pixel_chunks(data))
        return (stripped, "its metadata cannot be read") if len(stripped) < len(data) else None
    if data.startswith(JPEG):
        data = data.removesuffix(b"\xff")  # first half of the marker or of an escape sequence
        if lacks_only_its_end(data):
            return data + END_OF_JPEG, "it has no end marker"
    return None


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks of a PNG file that are not metadata, each with its length, type and checksum."""
    start = len(PNG)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind in PIXEL_CHUNKS:
            yield data[start : start + 12 + length]
        start += 12 + length


def lacks_only_its_end(data: bytes) -> bool:
    """Whether a JPEG file has all of its pixels and lacks only the end marker.

    As long as pixels are missing, a decoder interprets the following bytes as pixels. So the file
    is complete if it gives the same picture whatever bytes follow. This does not hold for
    progressive files, which may lack whole scans; for them the result is False.
    """
    random = np.random.default_rng(0)
    try:
        first, *others = (_pixels(data + _filler(random) + END_OF_JPEG) for _ in range(FILLERS))
    except Exception:  # damaged elsewhere: decoders raise any type
        return False
    return all(np.array_equal(first, other) for other in others)


def _filler(random: np.random.Generator) -> bytes:
    """Random data for a JPEG decoder, with all restart markers that it may expect."""
    parts = random.integers(0, 255, (9, 32), dtype=np.uint8)
    markers = [bytes([0xFF, 0xD0 + number]) for number in range(8)]
    return b"".join(
        part.tobytes() + marker for part, marker in zip(parts, [*markers, b""], strict=True)
    )


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if "progressive" in image.info:
            raise ValueError("a progressive file")
        return np.asarray(image)
