"""Classifies pictures: python predict.py IMAGE_OR_FOLDER ... --weights FILE."""

import argparse
import json
import sys
from pathlib import Path

from kansformer.errors import UserError, run_command

DIGITS = Path(__file__).parent / "weights" / "digits.safetensors"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="files, folders or globs"
    )
    parser.add_argument(
        "--weights", default=str(DIGITS), help="weights file (default: the digits in this repo)"
    )
    parser.add_argument("--topk", type=int, default=5, help="classes to show (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON array and nothing else")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    args = parser.parse_args()
    if args.topk < 1:
        raise UserError(f"--topk must be at least 1, not {args.topk}")

    from kansformer.infer import Predictor, find_pictures

    predictor = Predictor.load(args.weights, args.device)
    answers = []
    for answer in predictor.stream(find_pictures(args.images), args.topk):
        answers.append(answer)
        if "error" in answer:
            print(f"error: {answer['error']}", file=sys.stderr)
        elif not args.json:
            print(answer["path"])
            for row in answer["top"]:
                print(f"  {100 * row['probability']:6.2f} %  {row['class']}")
    if args.json:
        print(json.dumps(answers, indent=1))  # ASCII: any terminal's encoding will do
    # bad input only if there was nothing to answer: one bad picture must not fail a whole folder
    return 0 if any("top" in answer for answer in answers) else 2


if __name__ == "__main__":
    sys.exit(run_command(main))
