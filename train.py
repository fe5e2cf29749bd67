"""Trains a Vision KANsformer on a folder of pictures: python train.py --data-path DIR."""

import argparse
import sys
from pathlib import Path

from kansformer.errors import run_command

ROOT = Path(__file__).resolve().parent  # gets class_indices.json of the last run


def main() -> None:
    from kansformer.train import train
    from kansformer.train.config import add_flags
    from kansformer.train.configure import configure
    from kansformer.train.distributed import discard, process_group

    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser)
    flags = vars(parser.parse_args())
    with process_group(flags.get("device", "auto")) as ranks:
        log = print if ranks.is_first else discard
        config, data = configure(flags, log, ranks)
        train(config, data, project_root=ROOT)


if __name__ == "__main__":
    sys.exit(run_command(main))
