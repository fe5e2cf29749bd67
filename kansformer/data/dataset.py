"""Labelled pictures as a torch data set, with augmentation that depends on the picture alone."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kansformer.data.sources import Pictures


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """Transformed pictures, indexed by (epoch, place).

    The transform's randomness is a function of (seed, epoch, place), so the number of workers and
    the order of the pictures do not matter.

    `at_least` lets large JPEGs be decoded smaller (`open_image`). It is for training only: with it,
    evaluation would not equal prediction. `augment.least_side` gives it for a policy.
    """

    def __init__(
        self,
        pictures: Pictures,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        at_least: int | None = None,
    ) -> None:
        self.pictures = pictures
        self.transform = transform
        self.seed = seed
        self.at_least = at_least

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image = self.pictures.open(index, self.at_least)
        state = torch.get_rng_state()
        # the CPU's generator alone: torch.manual_seed would reseed the GPUs for every picture
        torch.default_generator.manual_seed(hash((self.seed, epoch, index)))
        try:
            tensor = self.transform(image)
        finally:
            torch.set_rng_state(state)
        return tensor, int(self.pictures.labels[index])


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, place), in an order given by (seed, epoch), or as they stand."""

    def __init__(self, length: int, shuffle: bool, seed: int = 0) -> None:
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order: list[int] | range = range(self.length)
        if self.shuffle:
            generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
            order = torch.randperm(self.length, generator=generator).tolist()
        return iter([(self.epoch, place) for place in order])


def make_loader(
    dataset: PictureDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
    workers: int = 0,
    pin: bool = False,
) -> DataLoader[Any]:
    """Batches of (pictures (B, C, S, S), labels (B,)); set `loader.sampler.epoch` before each.

    Args:
        drop_last: leave out a last batch that is not full, unless it is the only one.
        workers: processes that read pictures; 0 for none besides this one.
        pin: page-locked memory, for CUDA.
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=EpochSampler(len(dataset), shuffle, dataset.seed),
        drop_last=drop_last and len(dataset) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
    )
