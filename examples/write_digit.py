"""Writes a test picture of digits to a file: python examples/write_digit.py FILE [--index N]."""

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kansformer.data import load_data

MAGNIFICATION = 16  # 8x8 pixels are too small to see


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the file to write")
    parser.add_argument(
        "--index", type=int, default=0, help="index of the test picture (default 0)"
    )
    args = parser.parse_args()

    test = load_data("digits").test
    picture = test.open(args.index)
    size = (picture.width * MAGNIFICATION, picture.height * MAGNIFICATION)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    picture.resize(size, Image.Resampling.NEAREST).save(args.file)
    print(f"{args.file}: test picture {args.index}, a {test.labels[args.index]}")


if __name__ == "__main__":
    main()
