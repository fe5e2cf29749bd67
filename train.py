"""Trains a Vision KANsformer on a folder of pictures: python train.py --data-path DIR."""

import argparse
import sys
from pathlib import Path

from kansformer.errors import run_command

ROOT = Path(__file__).resolve().parent  # where class_indices.json of the last run lies


def main() -> None:
    from kansformer.train import train
    from kansformer.train.config import add_flags
    from kansformer.train.distributed import ignore, joined_ranks
    from kansformer.train.recipes import configure

    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser)
    flags = vars(parser.parse_args())
    with joined_ranks(flags.get("device", "auto")) as ranks:
        say = print if ranks.is_first else ignore
        config, data = configure(flags, say, ranks)
        train(config, data, project_root=ROOT)


if __name__ == "__main__":
    sys.exit(run_command(main))
