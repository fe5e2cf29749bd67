"""Classifies pictures by an exported ONNX file alone, with onnxruntime, numpy and pillow.

python examples/run_onnx.py model.onnx PICTURE ...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

DEEP = {"I;16": (0, 65535), "I": (0, 65535), "F": (0, 1)}  # black and white, if the model has none


def in_8_bits(image: Image.Image, levels: dict) -> Image.Image:
    """A picture of integers or floats scaled to grey, and transparency laid over white."""
    mode = image.mode[:4]
    if mode in DEEP:
        black, white = levels.get(mode, DEEP[mode])
        scaled = (np.asarray(image) - float(black)) * (255 / (white - black))
        return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def prepare(image: Image.Image, how: dict) -> np.ndarray:
    """A picture as the model wants it, (C, S, S) float32."""
    image = in_8_bits(ImageOps.exif_transpose(image), how["levels"])
    image = image.convert("L" if how["in_chans"] == 1 else "RGB")
    size = round(how["img_size"] / how["crop_pct"])
    short = min(image.size)
    shape = [int(size * side / short) for side in image.size]
    image = image.resize(shape, Image.Resampling[how["interpolation"].upper()])
    left, top = (round((side - how["img_size"]) / 2) for side in image.size)
    image = image.crop((left, top, left + how["img_size"], top + how["img_size"]))
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels.reshape(how["img_size"], how["img_size"], how["in_chans"])
    return ((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1).astype(np.float32)


def main() -> None:
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    names, how, temperature = (
        json.loads(told[key]) for key in ("class_names", "preprocessing", "temperature")
    )
    for path in sys.argv[2:]:
        batch = prepare(Image.open(path), how)[None]
        logits = session.run(["logits"], {"images": batch})[0][0].astype(np.float64) / temperature
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        best = chances.argmax()
        print(f"{path}: {names[best]}, {chances[best]:.4f}")


if __name__ == "__main__":
    main()
