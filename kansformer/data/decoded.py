"""A cache of decoded pictures in memory, for data sets that fit there."""

import os
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from kansformer.data.images import Levels, open_image
from kansformer.data.inspection import file_key
from kansformer.data.parallel import in_processes
from kansformer.errors import UserError
from kansformer.memory import free_memory

SAMPLE = 100  # pictures that are decoded first to estimate the memory of all


def decode(path: str, at_most: int | None = None, levels: Levels | None = None) -> np.ndarray:
    """One picture as (H, W) or (H, W, 3) uint8, its shorter side reduced to `at_most` pixels."""
    image = open_image(path, at_least=at_most, levels=levels)
    short = min(image.size)
    if at_most is not None and short > at_most:
        width, height = (round(side * at_most / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def decode_files(
    paths: Sequence[str],
    at_most: int | None = None,
    workers: int | None = None,
    memory: int | None = None,
    levels: Levels | None = None,
) -> list[np.ndarray]:
    """All pictures, in order; paths that lead to the same file share one array.

    Args:
        at_most: pixels of the shorter side; larger pictures are reduced. None keeps every pixel.
        workers: processes that decode; None for one per CPU.
        memory: limit in bytes for the decoded pictures; by default half of the free memory.
        levels: (black, white) per mode with more than 8 bits, as for `open_image`.

    Raises:
        PictureError: a picture cannot be read.
        UserError: the pictures would exceed the memory limit.
    """
    keys = [file_key(path) or path for path in paths]
    files = dict(zip(keys, paths, strict=True))
    limit = free_memory() // 2 if memory is None else memory

    def check(needed: float) -> None:
        if needed > limit:
            raise UserError(
                f"{os.path.dirname(paths[0])} and others: {len(files):,} decoded pictures would"
                f" take {needed / 1e9:.2f} GB of memory, more than the limit of"
                f" {limit / 1e9:.2f} GB (half of the free memory); leave out --cache"
            )

    sample = list(files.values())[:: max(1, len(files) // SAMPLE)]
    work = partial(decode, at_most=at_most, levels=levels)
    check(len(files) * float(np.mean([work(path).nbytes for path in sample])))
    decoded: dict[str, np.ndarray] = {}
    used = 0
    results = in_processes(work, list(files.values()), workers, "decoding")
    for key, pixels in zip(files, results, strict=True):
        decoded[key] = pixels
        used += pixels.nbytes
        check(used)  # the sample may have underestimated it
    return [decoded[key] for key in keys]
