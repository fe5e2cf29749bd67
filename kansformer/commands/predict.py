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
    """Reads the flags, classifies, and prints or writes the answers.

    Args:
        default_weights: a file that answers where --weights is not given; None requires the flag.

    Returns:
        The exit status: 2 where no picture could be classified.
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
        print(f"no --weights: {name} answers, which knows only digits", file=sys.stderr)
    unread: list[str] = []
    paths = find_pictures(args.images, unread)
    if unread:
        print(unread_formats(unread).lines(limit=0)[0], file=sys.stderr)
    folder = explanation_folder(args.explain, paths) if args.explain else None
    if folder:
        from kansformer.interpret.attention import explain
    printing = not args.json and args.csv is None
    # on the terminal that gets the answers a bar would only break them up
    shown = False if printing and sys.stdout.isatty() else None
    stream = predictor.stream(paths, args.topk, args.batch_size, args.min_confidence)
    answers: list[dict[str, Any]] = []
    for answer in progress_bar(stream, "pictures", len(paths), shown=shown):
        if folder and "top" in answer:
            drawing = folder / explanation_name(len(answers) + 1, answer["path"])
            try:
                explain(predictor.model, answer["path"]).save(drawing)
                answer["explanation"] = str(drawing)
            except UserError as error:  # the file has changed since
                answer = {"path": answer["path"], "error": one_line(error)}
        answers.append(answer)
        if "error" in answer:
            print(f"error: {answer['error']}", file=sys.stderr)
        elif printing:
            print(answer_as_text(answer))
    rows = [answer_as_row(answer) for answer in answers]
    if args.json:
        print(json.dumps(answers, indent=1))  # ASCII: any terminal's encoding will do
    if args.csv == "-":
        print(as_csv(rows), end="")
    elif args.csv is not None:
        write_csv(Path(args.csv), rows)
        if not args.json:
            print(f"written: {args.csv}, {number(len(rows), 'row')}")
    # bad input only if there was nothing to answer: one bad picture must not fail a whole folder
    return 0 if any("top" in answer for answer in answers) else 2


def parse_flags(default_weights: Path | None) -> argparse.Namespace:
    """The checked flags; see `main`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="files, folders or globs"
    )
    parser.add_argument(
        "--weights",
        default=default_weights,
        required=default_weights is None,
        metavar="FILE",
        help="best.safetensors of a training"
        + (f" (default: {default_weights.name})" if default_weights else ""),
    )
    parser.add_argument("--topk", type=int, default=5, help="classes to show (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON array and nothing else")
    parser.add_argument(
        "--csv", metavar="FILE", help="write a table with a row for each picture; - prints it"
    )
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="P",
        help="a picture is unknown if no class has this probability (0 to 1)",
    )  # fmt: skip
    parser.add_argument(
        "--tta", action="store_true",
        help="average each picture with its mirror image, if the model was trained on such",
    )  # fmt: skip
    parser.add_argument(
        "--explain", metavar="DIR", help="draw into DIR where the model looks in each picture"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at once (default 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    args = parser.parse_args()
    for flag, value in (("--topk", args.topk), ("--batch-size", args.batch_size)):
        if value < 1:
            raise UserError(f"{flag} must be at least 1, not {value}")
    if not 0 <= args.min_confidence <= 1:
        raise UserError(f"--min-confidence must lie between 0 and 1, not {args.min_confidence}")
    if args.csv == "-" and args.json:
        raise UserError("--json and --csv - would both print; give --csv a file")
    if args.csv is not None and not Path(args.csv).parent.is_dir():
        raise UserError(f"{args.csv}: there is no such folder; make it, or give another --csv")
    return args


def explanation_folder(name: str, paths: list[str]) -> Path:
    """The folder for --explain, made where it is not there yet.

    Raises:
        UserError: it holds the pictures themselves, or cannot be made.
    """
    from kansformer.files import make_output_folder

    folder = Path(name)
    # not the path's own realpath: a link may lead elsewhere, or in a circle
    if os.path.realpath(folder) in {os.path.realpath(os.path.dirname(path)) for path in paths}:
        raise UserError(f"{folder}: holds the pictures themselves; choose another --explain")
    make_output_folder(folder)
    return folder


def explanation_name(place: int, path: str) -> str:
    """A file name that is not too long, although the picture's may be."""
    stem = os.fsencode(Path(path).stem)[:LONGEST_STEM].decode(errors="ignore")
    return f"{place:04}-{stem}.png"
