"""Trains a Vision KANsformer on a folder of pictures."""

import argparse
from pathlib import Path


def main(project_root: Path | None = None) -> None:
    """Reads the flags and trains.

    Args:
        project_root: class_indices.json is written to this folder as well as the output folder.
    """
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
        train(config, data, project_root=project_root)
