"""Splits a folder of class folders into train/val/test; keeps groups and duplicates together."""

import argparse
import shlex
from pathlib import Path

from kansformer.errors import UserError
from kansformer.words import command


def main() -> None:
    """Reads the flags, splits, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-path", required=True, help="folder with one folder per class")
    parser.add_argument("--output", required=True, help="new or empty folder for the splits")
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[0.8, 0.1, 0.1], metavar="F",
        help="shares of train, val and optionally test (default 0.8 0.1 0.1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the random split (default 0)")
    parser.add_argument("--symlink", action="store_true", help="link instead of copying")
    parser.add_argument(
        "--group-regex", metavar="REGEX",
        help="searched in each file name; pictures with the same match (of its groups, if any) are"
        " kept in the same split",
    )  # fmt: skip
    args = parser.parse_args()
    if len(args.ratios) not in (2, 3) or min(args.ratios) <= 0:
        raise UserError(f"--ratios takes two or three positive numbers, not {args.ratios}")

    from kansformer.data.split_folder import split_folder

    report = split_folder(
        Path(args.data_path), Path(args.output), args.ratios, args.seed,
        symlink=args.symlink, group_regex=args.group_regex,
    )  # fmt: skip
    print(report)
    print(f"next: {command('train')} --data-path {shlex.quote(args.output)}")
