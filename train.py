"""Trains a Vision KANsformer on a folder of pictures: python train.py --data-path DIR."""

import argparse
import sys

from kansformer.errors import run_command


def main() -> None:
    from kansformer.train import train
    from kansformer.train.config import add_flags
    from kansformer.train.recipes import configure

    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser)
    train(*configure(vars(parser.parse_args())))


if __name__ == "__main__":
    sys.exit(run_command(main))
