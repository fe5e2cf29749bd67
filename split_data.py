"""Splits a folder per class into train/val/test, keeping groups and equal pictures together."""

import sys

from kansformer.commands.split import main
from kansformer.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
