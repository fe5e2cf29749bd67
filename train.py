"""Trains a Vision KANsformer on a folder of pictures: python train.py --data-path DIR."""

import sys
from pathlib import Path

from kansformer.commands import train
from kansformer.errors import run_command

ROOT = Path(__file__).resolve().parent  # is given the class_indices.json of the last run


def main() -> None:
    train.main(ROOT)


if __name__ == "__main__":
    sys.exit(run_command(main))
