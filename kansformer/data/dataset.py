"""Labelled pictures as a torch dataset, with augmentation that is reproducible for each picture."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kansformer.data.sources import Pictures
from kansformer.errors import UserError, ignore_pillow_warnings, one_line

NO_LABEL = -1  # of the substitute for an unreadable picture; left out of losses and metrics
Key = tuple[int, int]  # (epoch, index)


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """Transformed pictures, indexed by (epoch, index).

    The transform's random state is a function of (seed, epoch, index), so neither the number of
    workers nor the order of the pictures matters.

    `at_least` allows large JPEGs to be decoded at reduced size, as long as the shorter side keeps
    that many pixels (`augment.least_side` computes it for a policy). Use it for training only:
    evaluation would no longer match prediction.
    """

    def __init__(
        self,
        pictures: Pictures,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        skip_broken: bool = False,
        at_least: int | None = None,
    ) -> None:
        """With `skip_broken`, an unreadable picture is reported on stderr and replaced by a grey
        one with the label `NO_LABEL`, which losses and metrics ignore; without, it raises a
        UserError.
        """
        self.pictures = pictures
        self.transform = transform
        self.seed = seed
        self.skip_broken = skip_broken
        self.at_least = at_least

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        epoch, index = key
        label = int(self.pictures.labels[index])
        try:
            image = self.pictures.open(index, self.at_least)
        except UserError as error:
            if not self.skip_broken:
                raise
            sys.stderr.write(f"left out: {one_line(error)}\n")
            image, label = Image.new("RGB", (64, 64), "grey"), NO_LABEL
        state = torch.get_rng_state()
        # only the CPU generator: torch.manual_seed would also reseed the GPUs for every picture
        torch.default_generator.manual_seed(hash((self.seed, epoch, index)))
        try:
            tensor = self.transform(image)
        finally:
            torch.set_rng_state(state)
        return tensor, label


class TrainingSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) for one rank, in an order determined by (seed, epoch).

    An optimizer step takes `accumulate` batches of `batch_size` pictures on each of `world` ranks;
    which pictures it takes depends only on the product of the three. An incomplete last step is
    dropped, unless it is the only one.

    Set `epoch` before iterating, and `first_step` to start in the middle of it.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        *,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        balanced: bool = False,
    ) -> None:
        """With `balanced`, pictures are drawn with replacement, each class equally often."""
        self.labels = labels
        self.batch_size, self.accumulate = batch_size, accumulate
        self.rank, self.world = rank, world
        self.seed = seed
        self.balanced = balanced
        self.epoch = 0
        self.first_step = 0
        self.steps = max(len(labels) // self.step_size, 1)

    @property
    def step_size(self) -> int:
        """Pictures in a full step, over all ranks."""
        return self.batch_size * self.accumulate * self.world

    def order(self) -> list[int]:
        """Indices of the pictures in the order of this epoch."""
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        if not self.balanced:
            return torch.randperm(len(self.labels), generator=generator).tolist()
        weights = 1 / torch.from_numpy(np.bincount(self.labels))[self.labels].double()
        return torch.multinomial(weights, len(weights), True, generator=generator).tolist()

    def batches(self, step: int, order: list[int] | None = None) -> list[list[Key]]:
        """The batches of this rank in one step of this epoch."""
        order = self.order() if order is None else order
        global_batch_size = self.batch_size * self.world
        starts = range(step * self.step_size, (step + 1) * self.step_size, global_batch_size)
        batches = [
            order[start + self.rank * self.batch_size :][: self.batch_size] for start in starts
        ]
        return [[(self.epoch, index) for index in batch] for batch in batches if batch]

    def __len__(self) -> int:
        pictures = min(len(self.labels), self.step_size)  # in a step
        return (self.steps - self.first_step) * -(-pictures // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order()
        for step in range(self.first_step, self.steps):
            yield from self.batches(step, order)


class PlainSampler(Sampler[Key]):
    """Every picture once, in order; rank r of W takes the pictures r, r + W, r + 2W, ..."""

    def __init__(self, length: int, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, length, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        return iter([(0, index) for index in self.indices])


def training_loader(
    dataset: PictureDataset, sampler: TrainingSampler, *, workers: int = 0, pin: bool = False
) -> DataLoader[Any]:
    """Batches of (pictures (B, C, S, S), labels (B,)), in the sampler's order.

    Args:
        workers: processes that read pictures; with 0 this process reads them.
        pin: page-locked memory, for CUDA.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=ignore_pillow_warnings,
    )


def make_loader(
    dataset: PictureDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin: bool = False,
) -> DataLoader[Any]:
    """Batches of (pictures (B, C, S, S), labels (B,)): every picture once, in order.

    Ranks take turns: rank r of W takes the pictures r, r + W, r + 2W, ... Arguments as in
    `training_loader`.
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=PlainSampler(len(dataset), rank, world),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=ignore_pillow_warnings,
    )
