"""Classifies pictures with an exported ONNX file, using only onnxruntime, numpy and pillow.

python examples/run_onnx.py model.onnx PICTURE ...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

DEEP = {"I;16": (0, 65535), "I": (0, 65535), "F": (0, 1)}  # default levels of black and white


def to_8_bits(image: Image.Image, levels: dict) -> Image.Image:
    """Scales pictures of more than 8 bits to 8, and composites transparency onto white."""
    mode = image.mode[:4]
    if mode in DEEP:
        black, white = levels.get(mode, DEEP[mode])
        scaled = (np.asarray(image) - float(black)) * (255 / (white - black))
        return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def prepare(image: Image.Image, settings: dict) -> np.ndarray:
    """Preprocesses a picture for the model, (C, S, S) float32."""
    image = to_8_bits(ImageOps.exif_transpose(image), settings["levels"])
    image = image.convert("L" if settings["in_chans"] == 1 else "RGB")
    size = round(settings["img_size"] / settings["crop_pct"])
    short = min(image.size)
    shape = [int(size * side / short) for side in image.size]
    image = image.resize(shape, Image.Resampling[settings["interpolation"].upper()])
    left, top = (round((side - settings["img_size"]) / 2) for side in image.size)
    image = image.crop((left, top, left + settings["img_size"], top + settings["img_size"]))
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = pixels.reshape(settings["img_size"], settings["img_size"], settings["in_chans"])
    return ((pixels - settings["mean"]) / settings["std"]).transpose(2, 0, 1).astype(np.float32)


def main() -> None:
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    names, settings, temperature = (
        json.loads(metadata[key]) for key in ("class_names", "preprocessing", "temperature")
    )
    for path in sys.argv[2:]:
        batch = prepare(Image.open(path), settings)[None]
        logits = session.run(["logits"], {"images": batch})[0][0].astype(np.float64) / temperature
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = probabilities.argmax()
        print(f"{path}: {names[best]}, {probabilities[best]:.4f}")


if __name__ == "__main__":
    main()
