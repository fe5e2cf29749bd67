"""Classifies pictures: python predict.py IMAGE_OR_FOLDER ... --weights FILE."""

import sys
from pathlib import Path

from kansformer.commands import predict
from kansformer.errors import run_command

DIGITS = Path(__file__).parent / "weights" / "digits.safetensors"


def main() -> int:
    return predict.main(DIGITS)


if __name__ == "__main__":
    sys.exit(run_command(main))
