"""Evaluates a model on labelled pictures: accuracy, calibration and confusions.

    python -m kansformer.evaluate --weights FILE --data-path DIR --output DIR

The output folder gets evaluation.json, classes.csv, predictions.csv (a row per picture),
confusion.png and reliability.png. A picture that cannot be read is reported on stderr and in the
JSON and is not counted; the exit status is then 1.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kansformer.errors import UserError, run_command
from kansformer.files import (
    make_output_folder,
    refuse_within,
    write_bytes,
    write_csv,
    write_json,
)
from kansformer.words import command

if TYPE_CHECKING:
    from kansformer.checkpoint import TrainedModel
    from kansformer.evaluate.predictions import Predictions


def main() -> int:
    """Evaluates, prints the result, and writes it into --output."""
    args = parse_flags()
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    if args.tta and args.calibrate:
        raise UserError("--calibrate fits the probabilities without --tta; remove --tta")
    for path in (args.output, args.weights if args.calibrate else None):
        if path:
            refuse_within(Path(path), Path(args.data_path))

    import torch

    from kansformer.data import load_data
    from kansformer.evaluate.predictions import predict_all
    from kansformer.evaluate.report import as_text, figures
    from kansformer.evaluate.split import choose_split
    from kansformer.infer import Predictor
    from kansformer.progress import progress_bar

    predictor = Predictor.load(args.weights, args.device, args.tta)
    data = load_data(args.data_path, args.download, args.download_dir)
    split = args.split or ("val" if args.calibrate and data.test is None else None)
    chosen = choose_split(data, predictor.model, split)
    bar = partial(progress_bar, total=len(chosen.pictures))
    predictions = predict_all(predictor, chosen.pictures, args.batch_size, bar)
    note, unreadable, calibrated = chosen.note, predictions.unreadable, None
    if args.calibrate:
        if chosen.split == "val":
            on_val = predictions
            note = f"{note}; the temperature was fitted on these pictures".removeprefix("; ")
        else:
            val = choose_split(data, predictor.model, "val")
            on_val = predict_all(predictor, val.pictures, args.batch_size)
            unreadable = [*unreadable, *on_val.unreadable]
        predictions, calibrated = calibrate(args.weights, predictor.model, on_val, predictions)

    for row in unreadable:
        print(f"error: {row['error']}", file=sys.stderr)
    report = {
        "weights": args.weights,
        "data": data.name,
        "split": chosen.split,
        "note": note,
        "pictures": len(predictions.labels),
        "unreadable": unreadable,
        **figures(predictions.labels, predictions.probabilities, predictor.class_names),
        "temperature": predictor.model.temperature,
        "calibrated": calibrated,
        "tta": args.tta,
        "pictures_per_second": len(chosen.pictures) / predictions.seconds,
        "device": str(predictor.device),
        "threads": torch.get_num_threads(),
        "batch_size": args.batch_size,
    }
    print(json.dumps(report, indent=1) if args.json else as_text(report))
    if args.output:
        write_results(Path(args.output), report, predictions, predictor.class_names)
        if not args.json:
            print(f"\nwritten: {args.output}/evaluation.json, and tables and plots next to it")
    return 1 if unreadable else 0


def parse_flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command("evaluate"),
        description="Evaluates a model on labelled pictures.",
    )
    parser.add_argument("--weights", required=True, help="weights file, such as best.safetensors")
    parser.add_argument(
        "--data-path", required=True, help="a folder per class, or a built-in data set"
    )
    parser.add_argument(
        "--split", choices=("test", "val", "train"),
        help="which pictures (default: test if there is one, else val, else all)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("--output", help="folder for tables and plots")
    parser.add_argument(
        "--calibrate", action="store_true",
        help="fit a temperature on the validation set and store it in the weights file",
    )  # fmt: skip
    parser.add_argument(
        "--tta", action="store_true", help="average each picture with its mirror image"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="pictures per batch (default 32)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    parser.add_argument(
        "--download", action="store_true", help="download a built-in data set if it is missing"
    )
    parser.add_argument(
        "--download-dir", default="data", metavar="DIR",
        help="folder of downloaded data sets (default data)",
    )  # fmt: skip
    return parser.parse_args()


def calibrate(
    weights: str, model: "TrainedModel", on_val: "Predictions", predictions: "Predictions"
) -> tuple["Predictions", dict[str, Any]]:
    """Fits a temperature to `on_val`, on validation pictures, and stores it in the weights file.

    Returns:
        `predictions` at that temperature, and their metrics before.
    """
    from kansformer.checkpoint import save_model
    from kansformer.evaluate.calibration import fit_temperature, rescaled
    from kansformer.evaluate.report import figures

    factor = fit_temperature(on_val.labels, on_val.probabilities)
    before = figures(predictions.labels, predictions.probabilities, model.class_names)
    calibrated = {
        "pictures": len(on_val.labels),
        "before": {"temperature": model.temperature, "nll": before["nll"], "ece": before["ece"]},
    }
    model.temperature *= factor
    save_model(
        weights, model, model.preprocessing, model.class_names, model.training_info,
        temperature=model.temperature,
    )  # fmt: skip
    scaled = rescaled(predictions.probabilities, factor)
    return replace(predictions, probabilities=scaled), calibrated


def write_results(
    folder: Path, report: dict[str, Any], predictions: "Predictions", class_names: tuple[str, ...]
) -> None:
    """Writes evaluation.json, the tables and the plots of an evaluation."""
    import numpy as np

    from kansformer.evaluate.calibration import reliability
    from kansformer.evaluate.plots import draw_confusion, draw_reliability
    from kansformer.figures import as_png, drawable_names, font_hint

    make_output_folder(folder)
    write_json(folder / "evaluation.json", report)
    write_csv(folder / "classes.csv", report["per_class"])
    columns = predictions.paths, predictions.labels, predictions.probabilities
    rows = [
        {"path": path, "true": class_names[true], "predicted": class_names[row.argmax()],
         "probability": float(row.max())}
        for path, true, row in zip(*columns, strict=True)
    ]  # fmt: skip
    write_csv(folder / "predictions.csv", rows)
    confusion = np.array(report["confusion"])
    figure = draw_confusion(confusion, drawable_names(class_names))
    write_bytes(folder / "confusion.png", as_png(figure))
    curve = reliability(predictions.labels, predictions.probabilities)
    title = f"{report['data']}, {report['split']}: ECE {report['ece']:.3f}, NLL {report['nll']:.3f}"
    write_bytes(folder / "reliability.png", as_png(draw_reliability(curve, title)))
    if hint := font_hint(class_names):
        print(hint, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
