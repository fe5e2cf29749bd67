"""Exports a model to a file that runs without this project.

    python -m kansformer.export --weights FILE --format onnx --output model.onnx

The exported program is compared with the model on noise and on synthetic pictures, in batches of
one and of seven. Unless all logits agree to 1e-4, nothing is written and the exit status is 1.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kansformer.checkpoint import TrainedModel, load_model
from kansformer.errors import JobFailed, UserError, run_command
from kansformer.export.formats import (
    FORMATS,
    Runner,
    onnx_runner,
    pt2_runner,
    quantized,
    to_onnx,
    to_pt2,
)
from kansformer.files import refuse_within, write_bytes
from kansformer.infer import Predictor
from kansformer.words import command, number

TOLERANCE = 1e-4
BATCHES = (1, 7)


def main() -> None:
    """Exports the model, verifies the result and writes it."""
    args = parse_flags()
    output = Path(args.output)
    if args.int8 and args.format != "onnx":
        raise UserError("--int8 requires --format onnx")
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"{output}: not a file in an existing folder; choose another --output")
    if args.data_path:
        refuse_within(output, Path(args.data_path))
    model = load_model(args.weights)
    packed = to_onnx(model) if args.format == "onnx" else to_pt2(model)
    run = onnx_runner(packed) if args.format == "onnx" else pt2_runner(packed)
    worst = largest_difference(model, run)
    if not worst <= TOLERANCE:
        raise JobFailed(
            f"{output}: not written, because its logits differ from the model's by {worst:.1e},"
            f" more than {TOLERANCE:g}"
        )
    print(f"verified: logits differ from the model's by at most {worst:.1e}")
    if args.int8:
        packed = quantized(packed)
        run = onnx_runner(packed)
        same = agreement(model, run)
        print(f"int8: the same class as the model for {same:.1%} of 64 synthetic pictures")
    if args.data_path:
        print(accuracies(model, run, args.data_path))
    write_bytes(output, packed)
    print(f"written: {output}, {len(packed) / 1e6:.1f} MB")


def parse_flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command("export"),
        description="Exports a model to a file that runs without this project.",
    )
    parser.add_argument("--weights", required=True, help="weights file, such as best.safetensors")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--int8", action="store_true", help="8-bit weights (onnx)")
    parser.add_argument(
        "--data-path", metavar="DIR|NAME",
        help="pictures on which to compare the accuracy of the file and the model",
    )  # fmt: skip
    return parser.parse_args()


def largest_difference(model: TrainedModel, run: Runner) -> float:
    """The largest difference between the logits of a model and of its exported program.

    Measured on noise and on synthetic pictures; NaN if any logit is NaN.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    shape = (14, config.in_chans, config.img_size, config.img_size)
    worst = []
    for images in (torch.randn(shape, generator=generator), synthetic_pictures(model, 14)):
        with torch.no_grad():
            expected = model(images)
        for size in BATCHES:
            logits = torch.cat([run(batch) for batch in images.split(size)])
            worst.append((logits - expected).abs().max())
    return torch.stack(worst).max().item()


def synthetic_pictures(model: TrainedModel, count: int) -> Tensor:
    """Smooth patches of color with noise, preprocessed for the model, (N, C, S, S)."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        patches = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        pixels = np.asarray(patches.resize((300, 250), Image.Resampling.BICUBIC))
        grain = random.normal(0, 10, pixels.shape)
        pictures.append(Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)))
    return torch.stack([model.preprocessing(picture) for picture in pictures])


def agreement(model: TrainedModel, run: Runner) -> float:
    """Share of synthetic pictures for which an exported program predicts the model's class."""
    images = synthetic_pictures(model, 64)
    with torch.no_grad():
        return (run(images).argmax(1) == model(images).argmax(1)).float().mean().item()


class ExportedPredictor(Predictor):
    """A model's predictor that takes the logits from its exported program."""

    def __init__(self, model: TrainedModel, run: Runner) -> None:
        super().__init__(model)
        self.run = run

    def logits(self, batch: Tensor) -> Tensor:
        """Preprocessed pictures (B, C, S, S) to (B, classes)."""
        return self.run(batch)


def accuracies(model: TrainedModel, run: Runner, data_path: str) -> str:
    """The accuracy of a model and of its exported program on labelled pictures, as text."""
    from kansformer.data import load_data
    from kansformer.evaluate.predictions import predict_all
    from kansformer.evaluate.split import choose_split

    chosen = choose_split(load_data(data_path), model)
    before = predict_all(Predictor(model), chosen.pictures)
    after = predict_all(ExportedPredictor(model, run), chosen.pictures)
    for row in before.unreadable:
        print(f"error: {row['error']}; not counted", file=sys.stderr)
    classes = [predictions.probabilities.argmax(1) for predictions in (before, after)]
    correct = [(predicted == before.labels).mean() for predicted in classes]
    same = (classes[0] == classes[1]).mean()
    return (
        f"accuracy on {number(len(before.labels), 'picture')} ({chosen.split}): {correct[1]:.2%},"
        f" the model's {correct[0]:.2%}; the same class for {same:.2%}"
        + (f"\n{chosen.note}" if chosen.note else "")
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
