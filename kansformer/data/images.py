"""Reading one picture, whatever it comes as and whatever its mode, or saying why not.

`open_image` is the only way from a path, an open file, bytes, a NumPy array or a PIL image to 8-bit
pixels, so that a picture gets the same answer whichever of these it is given as.
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

try:  # an optional package that teaches Pillow to read HEIC
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
# Names that promise a picture in a format that is not read.
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
MAX_PIXELS = 89_478_485  # Pillow's own bound, where it only warns
MAX_BYTES = 4 * MAX_PIXELS  # what so many pixels take with four channels and no compression
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# What `open_image` takes.
Source = str | os.PathLike[str] | BinaryIO | bytes | np.ndarray | Image.Image
# (black, white) of pictures with more than 8 bits: the pixel values that become 0 and 255, for the
# modes of Pillow that have them: 16-bit integers, 32-bit integers, floats.
Levels = Mapping[str, tuple[float, float]]
DEFAULT_LEVELS: Levels = {"I;16": (0, 65535), "I": (0, 65535), "F": (0.0, 1.0)}


class PictureError(UserError):
    """A picture file that cannot be read, by the kinds of `REMEDIES`, and why."""

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
    "too-many-bytes": "save the picture smaller",
    "too-many-pixels": "make the picture smaller",
    "not-a-picture": "convert it or remove it",
    "damaged": "replace it or remove it",
    "out-of-range": "scale it to 8 bits, or train on pictures of this kind",
}


@dataclass(frozen=True)
class Stored:
    """How a picture lies in its file, before `open_image` turns it upright and into 8 bits."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int  # EXIF's: 1 is upright
    is_deep: bool  # more than 8 bits a channel
    is_transparent: bool
    low: float = 0.0  # least and greatest pixel value of a mode in DEFAULT_LEVELS, else 0
    high: float = 0.0
    note: str = ""  # what was wrong with the file although its pixels are whole


@dataclass(frozen=True)
class Decoded:
    """A decoded picture in its own mode and orientation, and how it is stored."""

    image: Image.Image
    stored: Stored


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of a picture; hidden files have none."""
    return not name.startswith(".") and extension(name) in EXTENSIONS


def extension(name: str) -> str:
    """The ending of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def open_image(
    source: Source,
    name: str | None = None,
    at_least: int | None = None,
    levels: Levels | None = None,
) -> Image.Image:
    """Decodes a whole picture, turned upright, in mode "L" or "RGB".

    Transparency is laid over white; palettes, CMYK and other colour spaces become RGB; the first
    frame of an animation is taken. Pictures with more than 8 bits are scaled linearly between their
    levels, which never depend on the picture itself.

    Args:
        source: a path, an open binary file or bytes of one, a PIL image, or an array of uint8:
            (H, W), (H, W, 3), or (H, W, 4) with transparency; or of uint16: (H, W).
        name: what to call the picture in an error; the path by default.
        at_least: a JPEG may come out at a half, a quarter or an eighth of its size, as long as its
            shorter side keeps this many pixels. That is several times faster for photographs, and
            slightly different, so it is for training only.
        levels: of the data set that the picture belongs to. A mode that has none here has
            DEFAULT_LEVELS, and a picture that exceeds those is refused.

    Raises:
        PictureError: the picture cannot be read, is not of a known format, is damaged, or has more
            than `MAX_PIXELS` pixels or `MAX_BYTES` bytes. The limits hold before anything is
            decoded.
    """
    name = name or name_of(source)
    decoded = decode(source, name, at_least)
    return upright(to_8_bit(decoded.image, levels, name), decoded.image)


def is_source(value: object) -> bool:
    """Whether it is of a kind that `open_image` takes."""
    kinds = str | os.PathLike | bytes | bytearray | np.ndarray | Image.Image
    return isinstance(value, kinds) or hasattr(value, "read")


def name_of(source: Source) -> str:
    """What to call a picture that was given no name: its path, or what it is."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    own = getattr(source, "name", None) or getattr(source, "filename", None)
    return own if isinstance(own, str) else f"a picture given as {type(source).__name__}"


def decode(source: Source, name: str, at_least: int | None = None) -> Decoded:
    """Decodes a whole picture and leaves its mode and orientation; see `open_image`."""
    with _naming(source, name):
        if not is_source(source):
            wanted = "a path, an open file, bytes, a PIL image or a NumPy array"
            cause = "an object that cannot be read as a picture"
            raise _wrong(name, "not-a-picture", cause, f"give {wanted}")
        if isinstance(source, np.ndarray):
            source = _from_array(source, name)
        if isinstance(source, Image.Image):
            _check_pixels(source)
            file = getattr(source, "fp", None)
            try:
                return _load(source)
            except Exception:  # decoders raise many kinds; the file may be intact all the same
                if not file or (whole := mended(_all_bytes(file))) is None:
                    raise
                return _decode_file(io.BytesIO(whole[0]), None, whole[1])
        if isinstance(source, io.TextIOBase):
            raise _wrong(name, "not-a-picture", "a file opened as text, not with mode 'rb'")
        if isinstance(source, bytes | bytearray):
            source = io.BytesIO(source)
        size = _file_size(source)
        if size is None:
            raise _wrong(name, "no-file", "not a regular file")
        if size > MAX_BYTES:
            cause = f"has {size:,} bytes, the limit is {MAX_BYTES:,}"
            raise _wrong(name, "too-many-bytes", cause)
        try:
            return _decode_file(source, at_least)
        except BOMBS:
            raise
        except Exception:  # as above
            if (whole := mended(_all_bytes(source))) is None:
                raise
            return _decode_file(io.BytesIO(whole[0]), at_least, whole[1])


def to_8_bit(image: Image.Image, levels: Levels | None, name: str = "picture") -> Image.Image:
    """A decoded picture in mode "L" or "RGB"; see `open_image`."""
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
    """The picture turned as the EXIF or XMP orientation of the original says."""
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
    turned.info = {}  # it must not be turned a second time
    return turned


def read_size(path: str) -> tuple[int, int]:
    """Width and height of a picture file, as stored, from its header alone.

    Raises:
        PictureError: it has no header of a known format.
    """
    with _naming(path, path), Image.open(path, formats=FORMATS) as image:
        return image.size


def _decode_file(
    file: str | os.PathLike[str] | BinaryIO, at_least: int | None, note: str = ""
) -> Decoded:
    with Image.open(file, formats=FORMATS) as image:
        _check_pixels(image)
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # only JPEGs heed it
        return _load(image, note)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _load(image: Image.Image, note: str = "") -> Decoded:
    """Decodes an opened picture and tells how it is stored."""
    # A 16-bit picture in colour has mode "RGB"; only its decoder's arguments tell.
    is_deep = image.mode[0] in "IF" or ";16" in str(getattr(image, "tile", ""))
    width, height = image.size
    # Pillow turns a TIFF upright as it loads it. Of a PNG, to ask is to load, and an error of its
    # pixels must not pass for one of its metadata.
    turned = _orientation(image) if image.format == "TIFF" else None
    image.load()
    orientation, is_readable = turned or _orientation(image)
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
    """The orientation, 1 (upright) where none is known, and whether the metadata can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata that is damaged raises many kinds
        return 1, False
    known = isinstance(value, int) and value in range(1, 9)
    return (value if known else 1), True


def _scaled(image: Image.Image, levels: Levels | None, name: str) -> Image.Image:
    """A picture of integers or floats as 8-bit grey, linear between black and white."""
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
    """The key of `DEFAULT_LEVELS` for a picture of such a mode, or "" for any other picture."""
    mode = "I;16" if image.mode.startswith("I;16") else image.mode
    return mode if mode in DEFAULT_LEVELS else ""


def deep_values(image: Image.Image) -> np.ndarray:
    """Pixel values (H, W) in float64, finite; for modes in `DEFAULT_LEVELS`."""
    values = np.asarray(image).astype(np.float64)
    return np.nan_to_num(values, posinf=0.0, neginf=0.0)


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    shape, dtype = pixels.shape, pixels.dtype
    good = dtype == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))
    if not (good or (dtype == np.uint16 and len(shape) == 2)) or 0 in shape:
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
    """Bytes of a file or stream; None for what is no file, such as a pipe, which may never end."""
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
    """Whatever goes wrong within becomes a `PictureError` that names the picture."""
    try:
        yield
    except PictureError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged data
        raise _named(error, source, name) from None


def _named(error: Exception, source: Any, name: str) -> PictureError:
    """The `PictureError` of an exception."""
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
        return _wrong(name, "unreadable", "takes more memory than there is")
    if isinstance(error, OSError) and error.errno is not None:  # the system's, not a decoder's
        return _wrong(name, "unreadable", f"cannot be read ({error.strerror})")
    cause = " ".join(str(error).split()) or type(error).__name__
    return _wrong(name, "damaged", f"damaged ({cause})")


def _missing(source: Any, name: str) -> PictureError:
    if isinstance(source, str | os.PathLike) and os.path.islink(source):
        cause = f"a link to a file that is not there ({os.readlink(os.fspath(source))})"
        return _wrong(name, "link-to-nowhere", cause)
    if name.startswith(("http://", "https://")):
        return _wrong(name, "missing", "a URL, and nothing is downloaded", "give a local file")
    if name == "-":
        return _wrong(name, "missing", "standard input is not read", "give a file")
    return _wrong(name, "missing", "no such file")


def _folder(folder: Any, name: str) -> PictureError:
    names = [file for _, _, files in os.walk(folder) for file in files]
    if any(map(is_image_name, names)):
        return _wrong(name, "folder", "a folder, not a picture")
    unread = [file for file in names if extension(file) in UNREAD_EXTENSIONS]
    if unread:
        cause = f"a folder without a picture in a format that is read (it has {unread[0]})"
        return _wrong(name, "folder", cause, unread_remedy(unread))
    return _wrong(name, "folder", "a folder without pictures")


def unread_remedy(names: Sequence[str]) -> str:
    """What to do about files whose endings are in UNREAD_EXTENSIONS."""
    if any(extension(name) in HEIF_EXTENSIONS for name in names):
        return "pip install pillow-heif reads HEIC; convert other formats to JPEG or PNG"
    return "convert them to JPEG or PNG"
