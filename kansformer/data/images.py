"""Reads a picture from any kind of source and in any mode, or reports why it cannot be read.

`open_image` is the only conversion from a path, an open file, bytes, a NumPy array or a PIL image
to 8-bit pixels, so the prediction for a picture does not depend on how it is passed.
"""

import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, features

from kansformer.data.mend import mended
from kansformer.errors import UserError

try:  # an optional package that adds HEIC support to Pillow
    from pillow_heif import register_heif_opener  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    READS_HEIF = False
else:
    register_heif_opener()
    READS_HEIF = True
READS_AVIF = "avif" in features.modules and features.check("avif")  # since Pillow 11.3

FORMATS = (
    "JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM",
    *(["AVIF"] if READS_AVIF else []), *(["HEIF"] if READS_HEIF else []),
)  # fmt: skip
HEIF_EXTENSIONS = (".heic", ".heif", ".hif")
EXTENSIONS = frozenset(
    [
        *".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm".split(),
        *([".avif"] if READS_AVIF else []),
        *(HEIF_EXTENSIONS if READS_HEIF else []),
    ]
)
# Extensions of picture formats that are not supported.
UNREAD_EXTENSIONS = (
    frozenset(
        [
            *HEIF_EXTENSIONS,
            *".avif .jxl .jp2 .j2k .jpx .tga .psd .svg .ico .icns .eps .exr .hdr .dds .pcx".split(),
            *".dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .srw .pef .dcm .nii .czi .lif .nd2".split(),
        ]
    )
    - EXTENSIONS
)
MAX_PIXELS = 89_478_485  # the bound from which Pillow warns
MAX_BYTES = 4 * MAX_PIXELS  # size of that many uncompressed pixels with four channels
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# What `open_image` takes.
Source = str | os.PathLike[str] | BinaryIO | bytes | np.ndarray | Image.Image
# (black, white) per Pillow mode with more than 8 bits ("I;16": 16-bit integers, "I": 32-bit
# integers, "F": floats): the pixel values that become 0 and 255.
Levels = Mapping[str, tuple[float, float]]
DEFAULT_LEVELS: Levels = {"I;16": (0, 65535), "I": (0, 65535), "F": (0.0, 1.0)}


class PictureError(UserError):
    """A picture that cannot be read: `kind` is a key of `REMEDIES`, `cause` the reason in words."""

    def __init__(self, text: str, kind: str = "damaged", cause: str = "damaged") -> None:
        super().__init__(text)
        self.kind = kind
        self.cause = cause


REMEDIES = {
    "missing": "check the path",
    "link-to-nowhere": "fix the link or remove it",
    "folder": "give a picture, or a folder of pictures",
    "no-file": "remove it",
    "unreadable": "check its permissions and the disk",
    "too-many-bytes": "save the picture as a smaller file",
    "too-many-pixels": "reduce the picture's resolution",
    "not-a-picture": "convert it or remove it",
    "damaged": "replace it or remove it",
    "out-of-range": "scale it to 8 bits, or train on pictures of this kind",
}


@dataclass(frozen=True)
class Stored:
    """Properties of a picture as stored, before `open_image` turns it upright and into 8 bits."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int  # EXIF orientation: 1 is upright
    is_deep: bool  # more than 8 bits per channel
    is_transparent: bool
    low: float = 0.0  # least and greatest pixel value in modes of DEFAULT_LEVELS, else 0
    high: float = 0.0
    note: str = ""  # a defect of the file that leaves the pixels intact


@dataclass(frozen=True)
class Decoded:
    """A decoded picture in its original mode and orientation, and its stored properties."""

    image: Image.Image
    stored: Stored


def is_image_name(name: str) -> bool:
    """Whether a file name has a picture's extension and is not hidden."""
    return not name.startswith(".") and extension(name) in EXTENSIONS


def extension(name: str) -> str:
    """A file name's extension in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def open_image(
    source: Source,
    name: str | None = None,
    at_least: int | None = None,
    levels: Levels | None = None,
) -> Image.Image:
    """Decodes a whole picture, turned upright, in mode "L" or "RGB".

    Transparency is composited over white; palettes, CMYK and other color spaces become RGB; of an
    animation, the first frame is used. Pictures with more than 8 bits are scaled linearly from
    (black, white) levels to (0, 255); the levels never depend on the picture itself.

    Args:
        source: a path, an open binary file or bytes of one, a PIL image, or an array of uint8:
            (H, W), (H, W, 3), or (H, W, 4) with transparency; or of uint16: (H, W).
        name: the picture's name in error messages; the path by default.
        at_least: decode a JPEG at 1/2, 1/4 or 1/8 of its size, as long as its shorter side keeps
            this many pixels. That is several times faster for photographs but changes the pixels
            slightly, so it is for training only.
        levels: (black, white) per mode, of the data set that the picture belongs to. For other
            modes DEFAULT_LEVELS apply, and a picture that exceeds those is refused.

    Raises:
        PictureError: the picture cannot be read, is not in a known format, is damaged, or has more
            than `MAX_PIXELS` pixels or `MAX_BYTES` bytes, which is checked before decoding.
    """
    name = name or name_of(source)
    decoded = decode(source, name, at_least)
    return upright(to_8_bit(decoded.image, levels, name), decoded.image)


def is_source(value: object) -> bool:
    """Whether `open_image` accepts a value of this type."""
    kinds = str | os.PathLike | bytes | bytearray | np.ndarray | Image.Image
    return isinstance(value, kinds) or hasattr(value, "read")


def name_of(source: Source) -> str:
    """The default name of a picture in messages: its path, or else its type."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return name if isinstance(name, str) else f"a picture given as {type(source).__name__}"


def decode(source: Source, name: str, at_least: int | None = None) -> Decoded:
    """Decodes a whole picture, keeping its mode and orientation.

    Args and errors are those of `open_image`.
    """
    with _naming(source, name):
        if not is_source(source):
            supported = "a path, an open file, bytes, a PIL image or a NumPy array"
            cause = "an object that cannot be read as a picture"
            raise _wrong(name, "not-a-picture", cause, f"give {supported}")
        if isinstance(source, np.ndarray):
            source = _from_array(source, name)
        if isinstance(source, Image.Image):
            _check_pixels(source)
            file = getattr(source, "fp", None)
            try:
                return _load(source)
            except Exception:  # decoders raise any type; the pixels may be intact nevertheless
                if not file or (repaired := mended(_all_bytes(file))) is None:
                    raise
                return _decode_file(io.BytesIO(repaired[0]), None, repaired[1])
        if isinstance(source, io.TextIOBase):
            raise _wrong(name, "not-a-picture", "a file opened as text", "open it in mode 'rb'")
        if isinstance(source, bytes | bytearray):
            source = io.BytesIO(source)
        size = _file_size(source)
        if size is None:
            raise _wrong(name, "no-file", "not a regular file")
        if size > MAX_BYTES:
            cause = f"has {size:,} bytes, more than the limit of {MAX_BYTES:,}"
            raise _wrong(name, "too-many-bytes", cause)
        try:
            return _decode_file(source, at_least)
        except BOMBS:
            raise
        except Exception:  # as above
            if (repaired := mended(_all_bytes(source))) is None:
                raise
            return _decode_file(io.BytesIO(repaired[0]), at_least, repaired[1])


def to_8_bit(image: Image.Image, levels: Levels | None, name: str = "picture") -> Image.Image:
    """A decoded picture converted to mode "L" or "RGB", with the rules and levels of `open_image`.

    Raises:
        PictureError: pixel values exceed the DEFAULT_LEVELS of a mode without `levels`.
    """
    if deep_mode(image):
        return _scaled(image, levels, name)
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("LA") if image.mode == "La" else image
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("L" if grey else "RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "LAB":
        converted = ImageCms.applyTransform(image, _lab_to_rgb())
        assert converted is not None  # only None when in place
        return converted
    return image.convert("RGB")


@cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def upright(image: Image.Image, original: Image.Image) -> Image.Image:
    """The picture turned upright by the EXIF or XMP orientation of the original."""
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(original)[0])
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = {}  # drops the orientation, which must not be applied a second time
    return turned


def read_size(path: str) -> tuple[int, int]:
    """Width and height of a picture file, as stored, from its header alone.

    Raises:
        PictureError: the file has no header of a known format.
    """
    with _naming(path, path), Image.open(path, formats=FORMATS) as image:
        return image.size


def _decode_file(
    file: str | os.PathLike[str] | BinaryIO, at_least: int | None, note: str = ""
) -> Decoded:
    with Image.open(file, formats=FORMATS) as image:
        _check_pixels(image)
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # without effect on formats other than JPEG
        return _load(image, note)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _load(image: Image.Image, note: str = "") -> Decoded:
    """Decodes an opened picture."""
    # A 16-bit color picture has mode "RGB"; only the decoder's arguments show the 16 bits.
    is_deep = image.mode[0] in "IF" or ";16" in str(getattr(image, "tile", ""))
    width, height = image.size
    # Pillow turns a TIFF upright while loading, so its orientation is read before. For a PNG,
    # getexif() loads the pixels, whose errors must not be taken for errors of the metadata.
    before = _orientation(image) if image.format == "TIFF" else None
    image.load()
    orientation, is_readable = before or _orientation(image)
    stored = Stored(
        image.format or "",
        image.mode,
        width,
        height,
        orientation,
        is_deep,
        image.has_transparency_data,
        note=note or ("" if is_readable else "its EXIF cannot be read"),
    )
    return Decoded(image, stored)


def _orientation(image: Image.Image) -> tuple[int, bool]:
    """The orientation, 1 (upright) if there is no valid one, and whether the EXIF can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata raises any type
        return 1, False
    known = isinstance(value, int) and value in range(1, 9)
    return (value if known else 1), True


def _scaled(image: Image.Image, levels: Levels | None, name: str) -> Image.Image:
    """A picture of integers or floats as 8-bit grey, scaled linearly from black to white level."""
    mode = deep_mode(image)
    values = deep_values(image)
    if levels and mode in levels:
        black, white = levels[mode]
    else:
        black, white = DEFAULT_LEVELS[mode]
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        if low < black or high > white:
            expected = f"outside the expected {black:g} to {white:g}"
            cause = f"pixel values from {low:g} to {high:g}, {expected}"
            raise _wrong(name, "out-of-range", cause)
    scaled = (values - black) * (255 / (white - black))
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def deep_mode(image: Image.Image) -> str:
    """The key of `DEFAULT_LEVELS` for the picture's mode; "" for modes of 8 bits or fewer."""
    mode = "I;16" if image.mode.startswith("I;16") else image.mode
    return mode if mode in DEFAULT_LEVELS else ""


def deep_values(image: Image.Image) -> np.ndarray:
    """Pixel values (H, W) in float64 of a mode in `DEFAULT_LEVELS`; non-finite values become 0."""
    values = np.asarray(image).astype(np.float64)
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    shape, dtype = pixels.shape, pixels.dtype
    is_8_bit = dtype == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))
    if not (is_8_bit or (dtype == np.uint16 and len(shape) == 2)) or 0 in shape:
        raise _wrong(
            name,
            "not-a-picture",
            f"an array of shape {shape} and type {dtype}, not of uint8 with shape (H, W), (H, W, 3)"
            " or (H, W, 4)",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _all_bytes(file: str | os.PathLike[str] | BinaryIO) -> bytes:
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return opened.read()
    file.seek(0)
    return file.read()


def _file_size(file: str | os.PathLike[str] | BinaryIO) -> int | None:
    """Size of a file or stream in bytes; None if unknown, as for a pipe, which may never end."""
    if not isinstance(file, str | os.PathLike):
        if not file.seekable():
            return None
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return size
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _wrong(name: str, kind: str, cause: str, remedy: str = "") -> PictureError:
    return PictureError(f"{name}: {cause}; {remedy or REMEDIES[kind]}", kind, cause)


@contextmanager
def _naming(source: Any, name: str) -> Iterator[None]:
    """Converts any exception in the block into a `PictureError` that names the picture."""
    try:
        yield
    except PictureError:
        raise
    except Exception as error:  # decoders raise any type on damaged data
        raise _named(error, source, name) from None


def _named(error: Exception, source: Any, name: str) -> PictureError:
    """The `PictureError` for an exception."""
    if isinstance(error, FileNotFoundError):
        return _missing(source, name)
    if isinstance(error, IsADirectoryError):
        return _folder(source, name)
    if isinstance(error, Image.UnidentifiedImageError):
        cause = f"not a picture of a known format ({', '.join(FORMATS)})"
        remedy = unread_remedy([name]) if extension(name) in UNREAD_EXTENSIONS else ""
        return _wrong(name, "not-a-picture", cause, remedy)
    if isinstance(error, BOMBS):
        cause = f"has more pixels than the limit of {MAX_PIXELS:,}"
        return _wrong(name, "too-many-pixels", cause)
    if isinstance(error, MemoryError):
        return _wrong(name, "unreadable", "needs more memory than is available", "make it smaller")
    if isinstance(error, OSError) and error.errno is not None:  # from the system, not a decoder
        return _wrong(name, "unreadable", f"cannot be read ({error.strerror})")
    cause = " ".join(str(error).split()) or type(error).__name__
    return _wrong(name, "damaged", f"damaged ({cause})")


def _missing(source: Any, name: str) -> PictureError:
    if isinstance(source, str | os.PathLike) and os.path.islink(source):
        cause = f"a broken link (to {os.readlink(os.fspath(source))})"
        return _wrong(name, "link-to-nowhere", cause)
    if name.startswith(("http://", "https://")):
        return _wrong(name, "missing", "URLs are not downloaded", "give a local file")
    if name == "-":
        return _wrong(name, "missing", "standard input is not read", "give a file")
    return _wrong(name, "missing", "no such file")


def _folder(folder: Any, name: str) -> PictureError:
    names = [file for _, _, files in os.walk(folder) for file in files]
    if any(map(is_image_name, names)):
        return _wrong(name, "folder", "a folder, not a picture")
    unread = [file for file in names if extension(file) in UNREAD_EXTENSIONS]
    if unread:
        cause = f"a folder without pictures in a supported format (it has {unread[0]})"
        return _wrong(name, "folder", cause, unread_remedy(unread))
    return _wrong(name, "folder", "a folder without pictures")


def unread_remedy(names: Sequence[str]) -> str:
    """The remedy for files whose extensions are in UNREAD_EXTENSIONS."""
    if any(extension(name) in HEIF_EXTENSIONS for name in names):
        return "pip install pillow-heif (for HEIC), or convert them to JPEG or PNG"
    return "convert them to JPEG or PNG"
