"""Trains a Vision KANsformer on a folder of pictures."""

import argparse
from pathlib import Path


def main(project_root: Path | None = None) -> None:
    """Reads the flags and trains.

    Args:
        project_root: a folder that is given class_indices.json, as well as the output folder.
    """
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
        train(config, data, project_root=project_root)
