"""Says how good a model is on labelled pictures, and how far its probabilities can be trusted.

    python -m kansformer.evaluate --weights FILE --data-path DIR --output DIR

The output folder gets evaluation.json, classes.csv, predictions.csv (picture by picture),
confusion.png and reliability.png. A picture that cannot be read is named on stderr and in the JSON
and left out of the figures, and the exit status is then 1.
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

if TYPE_CHECKING:
    from kansformer.checkpoint import TrainedModel
    from kansformer.evaluate.predictions import Predictions


def main() -> int:
    """Reads the flags, evaluates, prints, and writes what was asked for."""
    args = parse_flags()
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    if args.tta and args.calibrate:
        raise UserError("--calibrate fits the model's own probabilities; leave out --tta")
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
    found = predict_all(predictor, chosen.pictures, args.batch_size, bar)
    note, unreadable, calibrated = chosen.note, found.unreadable, None
    if args.calibrate:
        if chosen.split == "val":
            on_val = found
            note = f"{note}; the temperature was fitted on these pictures".removeprefix("; ")
        else:
            val = choose_split(data, predictor.model, "val")
            on_val = predict_all(predictor, val.pictures, args.batch_size)
            unreadable = [*unreadable, *on_val.unreadable]
        found, calibrated = calibrate(args.weights, predictor.model, on_val, found)

    for row in unreadable:
        print(f"error: {row['error']}", file=sys.stderr)
    report = {
        "weights": args.weights,
        "data": data.name,
        "split": chosen.split,
        "note": note,
        "pictures": len(found.labels),
        "unreadable": unreadable,
        **figures(found.labels, found.probabilities, predictor.class_names),
        "temperature": predictor.model.temperature,
        "calibrated": calibrated,
        "tta": args.tta,
        "pictures_per_second": len(chosen.pictures) / found.seconds,
        "device": str(predictor.device),
        "threads": torch.get_num_threads(),
        "batch_size": args.batch_size,
    }
    print(json.dumps(report, indent=1) if args.json else as_text(report))
    if args.output:
        write_results(Path(args.output), report, found, predictor.class_names)
        if not args.json:
            print(f"\nwritten: {args.output}/evaluation.json, tables and pictures beside it")
    return 1 if unreadable else 0


def parse_flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kansformer.evaluate",
        description="Says how good a model is on labelled pictures.",
    )
    parser.add_argument("--weights", required=True, help="weights file, such as best.safetensors")
    parser.add_argument(
        "--data-path", required=True, help="a folder per class, or a built-in data set"
    )
    parser.add_argument(
        "--split", choices=("test", "val", "train"),
        help="which pictures (default: test if there are some, else val, else all)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("--output", help="folder for tables and pictures")
    parser.add_argument(
        "--calibrate", action="store_true",
        help="fit a temperature on the validation pictures and keep it in the weights file",
    )  # fmt: skip
    parser.add_argument(
        "--tta", action="store_true", help="average each picture with its mirror image"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    parser.add_argument(
        "--download", action="store_true", help="fetch a built-in data set that is not there"
    )
    parser.add_argument(
        "--download-dir", default="data", help="where built-in data sets are looked for and put"
    )
    return parser.parse_args()


def calibrate(
    weights: str, model: "TrainedModel", on_val: "Predictions", found: "Predictions"
) -> tuple["Predictions", dict[str, Any]]:
    """Fits a temperature to predictions on validation pictures and keeps it in the weights file.

    Returns:
        The other predictions at that temperature, and what they were before.
    """
    from kansformer.checkpoint import save_model
    from kansformer.evaluate.calibration import fit_temperature, rescaled
    from kansformer.evaluate.report import figures

    factor = fit_temperature(on_val.labels, on_val.probabilities)
    before = figures(found.labels, found.probabilities, model.class_names)
    calibrated = {
        "pictures": len(on_val.labels),
        "before": {"temperature": model.temperature, "nll": before["nll"], "ece": before["ece"]},
    }
    model.temperature *= factor
    save_model(
        weights, model, model.preprocessing, model.class_names, model.training_info,
        temperature=model.temperature,
    )  # fmt: skip
    return replace(found, probabilities=rescaled(found.probabilities, factor)), calibrated


def write_results(
    folder: Path, report: dict[str, Any], found: "Predictions", class_names: tuple[str, ...]
) -> None:
    """Writes all files of an evaluation; see the top of this file."""
    import numpy as np

    from kansformer.evaluate.calibration import reliability
    from kansformer.evaluate.plots import draw_confusion, draw_reliability
    from kansformer.figures import as_png, drawable_names, font_hint

    make_output_folder(folder)
    write_json(folder / "evaluation.json", report)
    write_csv(folder / "classes.csv", report["per_class"])
    predictions = [
        {"path": path, "true": class_names[true], "predicted": class_names[row.argmax()],
         "probability": float(row.max())}
        for path, true, row in zip(found.paths, found.labels, found.probabilities, strict=True)
    ]  # fmt: skip
    write_csv(folder / "predictions.csv", predictions)
    confusion = np.array(report["confusion"])
    figure = draw_confusion(confusion, drawable_names(class_names))
    write_bytes(folder / "confusion.png", as_png(figure))
    curve = reliability(found.labels, found.probabilities)
    title = f"{report['data']}, {report['split']}: ECE {report['ece']:.3f}, NLL {report['nll']:.3f}"
    write_bytes(folder / "reliability.png", as_png(draw_reliability(curve, title)))
    if hint := font_hint(class_names):
        print(hint, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
