"""Classifies pictures with one weights file."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from kansformer.errors import UserError, one_line

LONGEST_STEM = 200  # bytes; file systems allow 255 for a name


def main(default_weights: Path | None = None) -> int:
    """Reads the flags, classifies the pictures, and prints or writes the predictions.

    Args:
        default_weights: the default of --weights; with None the flag is required.

    Returns:
        The exit status: 2 if no picture could be classified.
    """
    args = parse_flags(default_weights)

    from kansformer.data.findings import unread_formats
    from kansformer.files import as_csv, write_csv
    from kansformer.infer import Predictor, answer_as_row, answer_as_text, find_pictures
    from kansformer.progress import progress_bar
    from kansformer.words import number

    predictor = Predictor.load(args.weights, args.device, args.tta)
    if args.weights is default_weights:
        name = default_weights.name
        print(f"no --weights given: using {name}, which knows only digits", file=sys.stderr)
    unread: list[str] = []
    paths = find_pictures(args.images, unread)
    if unread:
        print(unread_formats(unread).lines(limit=0)[0], file=sys.stderr)
    folder = explanation_folder(args.explain, paths) if args.explain else None
    if folder:
        from kansformer.interpret.attention import explain
    printing = not args.json and args.csv is None
    # a bar on the same terminal would be mixed up with the predictions
    shown = False if printing and sys.stdout.isatty() else None
    stream = predictor.stream(paths, args.topk, args.batch_size, args.min_confidence)
    answers: list[dict[str, Any]] = []
    for answer in progress_bar(stream, "pictures", len(paths), shown=shown):
        if folder and "top" in answer:
            drawing = folder / explanation_name(len(answers) + 1, answer["path"])
            try:
                explain(predictor.model, answer["path"]).save(drawing)
                answer["explanation"] = str(drawing)
            except UserError as error:  # the file has changed in the meantime
                answer = {"path": answer["path"], "error": one_line(error)}
        answers.append(answer)
        if "error" in answer:
            print(f"error: {answer['error']}", file=sys.stderr)
        elif printing:
            print(answer_as_text(answer))
    rows = [answer_as_row(answer) for answer in answers]
    if args.json:
        print(json.dumps(answers, indent=1))  # ASCII, which every terminal's encoding includes
    if args.csv == "-":
        print(as_csv(rows), end="")
    elif args.csv is not None:
        write_csv(Path(args.csv), rows)
        if not args.json:
            print(f"written: {args.csv}, {number(len(rows), 'row')}")
    # one bad picture must not fail a whole folder, so status 2 only if none was classified
    return 0 if any("top" in answer for answer in answers) else 2


def parse_flags(default_weights: Path | None) -> argparse.Namespace:
    """Parses and validates the flags.

    Args:
        default_weights: the default of --weights; with None the flag is required.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="files, folders or globs"
    )
    parser.add_argument(
        "--weights",
        default=default_weights,
        required=default_weights is None,
        metavar="FILE",
        help="weights file of a trained model, such as best.safetensors"
        + (f" (default: {default_weights.name})" if default_weights else ""),
    )
    parser.add_argument("--topk", type=int, default=5, help="classes to show (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON array and nothing else")
    parser.add_argument(
        "--csv", metavar="FILE", help="write a table with a row for each picture; - prints it"
    )
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="P",
        help="report a picture as unknown if no class reaches this probability (0 to 1)",
    )  # fmt: skip
    parser.add_argument(
        "--tta", action="store_true",
        help="average the probabilities for each picture and its mirror image, if the model was"
        " trained with mirroring",
    )  # fmt: skip
    parser.add_argument(
        "--explain", metavar="DIR", help="for each picture, save to DIR where the model looks"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="pictures per batch (default 32)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    args = parser.parse_args()
    for flag, value in (("--topk", args.topk), ("--batch-size", args.batch_size)):
        if value < 1:
            raise UserError(f"{flag} must be at least 1, not {value}")
    if not 0 <= args.min_confidence <= 1:
        raise UserError(f"--min-confidence must lie between 0 and 1, not {args.min_confidence}")
    if args.csv == "-" and args.json:
        raise UserError("--json and --csv - both print to stdout; give --csv a file")
    if args.csv is not None and not Path(args.csv).parent.is_dir():
        raise UserError(
            f"{args.csv}: its folder does not exist; create it, or choose another --csv"
        )
    return args


def explanation_folder(name: str, paths: list[str]) -> Path:
    """The folder for --explain, created if it does not exist.

    Raises:
        UserError: the folder holds the input pictures, or cannot be created.
    """
    from kansformer.files import make_output_folder

    folder = Path(name)
    # the real path of a picture's folder, not of the picture, which may be a link
    if os.path.realpath(folder) in {os.path.realpath(os.path.dirname(path)) for path in paths}:
        raise UserError(f"{folder}: holds the input pictures; choose another --explain")
    make_output_folder(folder)
    return folder


def explanation_name(number: int, path: str) -> str:
    """The file name of a picture's explanation, with the stem shortened to LONGEST_STEM bytes."""
    stem = os.fsencode(Path(path).stem)[:LONGEST_STEM].decode(errors="ignore")
    return f"{number:04}-{stem}.png"
