"""Reading one picture file right, whatever its mode, or saying why not."""

import io
import os
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps

from kansformer.errors import UserError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm".split()
)
MAX_PIXELS = 89_478_485  # Pillow's own bound, where it only warns
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_image_name(name: str) -> bool:
    """Whether a file name has the ending of a picture; hidden files have none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def walk_pictures(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of all picture files below a folder, sorted; hidden folders are passed over."""
    found: list[str] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(root, file) for file in files if is_image_name(file)]
    return sorted(found)


def open_image(file: str | os.PathLike[str] | io.BytesIO, name: str | None = None) -> Image.Image:
    """Decodes a whole picture, turned upright, in mode "L" or "RGB".

    Transparency is laid over white, 16-bit greys are scaled to 8 bits, palettes, CMYK and other
    colour spaces become RGB. The first frame of an animation is taken.

    Args:
        file: a path or a binary stream.
        name: what to call the picture in an error; the path by default.

    Raises:
        UserError: the file cannot be read, is not a picture of a known format, is damaged, or has
            more than `MAX_PIXELS` pixels.
    """
    name = name or str(file)
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return _to_8_bit(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{name}: a folder, not a picture; check the path") from None
    except PermissionError:
        raise UserError(f"{name}: not allowed to read it; check its permissions") from None
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{name}: not a picture of a known format ({', '.join(FORMATS)});"
            " convert it or take it out"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(
            f"{name}: has more pixels than the limit of {MAX_PIXELS:,}; make the picture smaller"
        ) from None
    except Exception as error:  # decoders raise many kinds on damaged data
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: damaged ({cause}); replace it or take it out") from None


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
