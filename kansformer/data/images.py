"""Reading one picture file right, whatever its mode, or saying why not."""

import io
import os
import stat
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from kansformer.errors import UserError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm".split()
)
MAX_PIXELS = 89_478_485  # Pillow's own bound, where it only warns
MAX_BYTES = 4 * MAX_PIXELS  # what so many pixels take with four channels and no compression
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureError(UserError):
    """A picture file that cannot be read, by the kinds of `REMEDIES`, and why."""

    def __init__(self, text: str, kind: str = "damaged", cause: str = "damaged") -> None:
        super().__init__(text)
        self.kind = kind
        self.cause = cause


REMEDIES = {
    "missing": "check the path",
    "link-to-nowhere": "mend the link or take it out",
    "folder": "check the path",
    "no-file": "take it out",
    "unreadable": "check its permissions and the disk",
    "too-many-bytes": "save the picture smaller",
    "too-many-pixels": "make the picture smaller",
    "not-a-picture": "convert it or take it out",
    "damaged": "replace it or take it out",
}


@dataclass(frozen=True)
class Stored:
    """How a picture lies in its file: what `open_image` has turned upright and into 8 bits."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int  # EXIF's: 1 is upright
    is_deep: bool  # more than 8 bits a channel
    is_transparent: bool


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of a picture; hidden files have none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def open_image(
    file: str | os.PathLike[str] | io.BytesIO,
    name: str | None = None,
    at_least: int | None = None,
) -> Image.Image:
    """Decodes a whole picture, turned upright, in mode "L" or "RGB".

    Transparency is laid over white, 16-bit greys are scaled to 8 bits, palettes, CMYK and other
    colour spaces become RGB. The first frame of an animation is taken.

    Args:
        file: a path or a binary stream.
        name: what to call the picture in an error; the path by default.
        at_least: a JPEG may come out at a half, a quarter or an eighth of its size, as long as its
            shorter side keeps so many pixels. That is several times faster for photographs, and
            slightly different, so it is for training only.

    Raises:
        PictureError: the file cannot be read, is not a picture of a known format, is damaged, or
            has more than `MAX_PIXELS` pixels or `MAX_BYTES` bytes. The limits hold before anything
            is decoded.
    """
    return read_image(file, name, at_least)[0]


def read_image(
    file: str | os.PathLike[str] | io.BytesIO,
    name: str | None = None,
    at_least: int | None = None,
) -> tuple[Image.Image, Stored]:
    """The picture as `open_image` gives it, and how it lies in its file."""
    name = name or str(file)

    def wrong(kind: str, cause: str) -> PictureError:
        return PictureError(f"{name}: {cause}; {REMEDIES[kind]}", kind, cause)

    try:
        size = _file_size(file)
        if size is None:
            raise wrong("no-file", "no regular file")
        if size > MAX_BYTES:
            raise wrong("too-many-bytes", f"has {size:,} bytes, the limit is {MAX_BYTES:,}")
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            stored = _describe(image)
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # only JPEGs heed it
            image.load()
            return _to_8_bit(ImageOps.exif_transpose(image)), stored
    except PictureError:
        raise
    except FileNotFoundError:
        if isinstance(file, str | os.PathLike) and os.path.islink(file):
            cause = f"a link to a file that is not there ({os.readlink(file)})"
            raise wrong("link-to-nowhere", cause) from None
        raise wrong("missing", "no such file") from None
    except IsADirectoryError:
        raise wrong("folder", "a folder, not a picture") from None
    except Image.UnidentifiedImageError:
        cause = f"not a picture of a known format ({', '.join(FORMATS)})"
        raise wrong("not-a-picture", cause) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        cause = f"has more pixels than the limit of {MAX_PIXELS:,}"
        raise wrong("too-many-pixels", cause) from None
    except MemoryError:
        raise wrong("unreadable", "takes more memory than there is") from None
    except Exception as error:  # decoders raise many kinds on damaged data
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a decoder's
            raise wrong("unreadable", f"cannot be read ({error.strerror})") from None
        cause = " ".join(str(error).split()) or type(error).__name__
        raise wrong("damaged", f"damaged ({cause})") from None


def _file_size(file: str | os.PathLike[str] | io.BytesIO) -> int | None:
    """Bytes of a file or stream; None for what is no file, such as a pipe, which may never end."""
    if not isinstance(file, str | os.PathLike):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return size
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _describe(image: Image.Image) -> Stored:
    """What is known of an opened picture before it is decoded."""
    # a 16-bit picture in colour has mode "RGB"; only its decoder's arguments tell
    is_deep = image.mode[0] in "IF" or ";16" in str(getattr(image, "tile", ""))
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return Stored(
        image.format or "",
        image.mode,
        image.width,
        image.height,
        int(orientation) if orientation in range(1, 9) else 1,
        is_deep,
        image.has_transparency_data,
    )


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.has_transparency_data and not image.mode.startswith("I"):
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("LA") if image.mode == "La" else image
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("L" if grey else "RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        is_wide = image.mode != "I" or values.max(initial=0) > 255  # "I" may hold 8 bits
        return Image.fromarray((values / (257 if is_wide else 1)).round().astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max(initial=0) <= 1 else values
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        converted = ImageCms.applyTransform(image, to_rgb)
        assert converted is not None  # only None when in place
        return converted
    return image.convert("RGB")
