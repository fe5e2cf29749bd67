"""Files whose pixels are whole although a decoder refuses them, with what it refuses taken out."""

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
END_OF_JPEG = b"\xff\xd9"
FILLERS = 8  # that a JPEG file without an end is tried with
# all that decides on the pixels of a PNG file and which way up they are
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")


def mended(data: bytes) -> tuple[bytes, str] | None:
    """A picture file that has the same pixels and can be decoded, and what was wrong with it.

    None if nothing is known to do for it. What comes back may still be damaged: the decoder tells.
    """
    if data.startswith(PNG):
        without = PNG + b"".join(_pixel_chunks(data))
        return (without, "its metadata cannot be read") if len(without) < len(data) else None
    if data.startswith(JPEG):
        data = data.removesuffix(b"\xff")  # half of the marker, or of an escape sequence
        if lacks_only_its_end(data):
            return data + END_OF_JPEG, "it has no end marker"
    return None


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks of a PNG file that are not metadata, each with its length, type and checksum."""
    place = len(PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind in PIXEL_CHUNKS:
            yield data[place : place + 12 + length]
        place += 12 + length


def lacks_only_its_end(data: bytes) -> bool:
    """Whether a JPEG file has all of its pixels, but not the marker that ends it.

    A decoder takes what follows for pixels as long as some are missing. So a file is whole if it
    gives the same picture whatever follows. That says nothing of a progressive file, which may lack
    whole scans: those do not count as whole.
    """
    random = np.random.default_rng(0)
    try:
        first, *others = (_pixels(data + _filler(random) + END_OF_JPEG) for _ in range(FILLERS))
    except Exception:  # damaged elsewhere: decoders raise many kinds
        return False
    return all(np.array_equal(first, other) for other in others)


def _filler(random: np.random.Generator) -> bytes:
    """Random data for a JPEG decoder, with all of the restart markers that it may wait for."""
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
