"""Classifies pictures by an exported ONNX file alone, with onnxruntime, numpy and pillow.

python examples/run_onnx.py model.onnx PICTURE ...
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(image: Image.Image, how: dict) -> np.ndarray:
    """A picture as the model wants it, (C, S, S) float32."""
    image = ImageOps.exif_transpose(image).convert("L" if how["in_chans"] == 1 else "RGB")
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
