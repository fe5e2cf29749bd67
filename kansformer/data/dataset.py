"""Labelled pictures as a torch data set, with augmentation that depends on the picture alone."""

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

NO_LABEL = -1  # of what stands in the place of a picture that could not be read; never counted
Key = tuple[int, int]  # (epoch, place)


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
        skip_broken: bool = False,
        at_least: int | None = None,
    ) -> None:
        """With `skip_broken`, a picture that cannot be read is named on stderr and gives a grey
        one, labelled `NO_LABEL`, which is in no loss and in no figure; else it is a UserError.
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
        # the CPU's generator alone: torch.manual_seed would reseed the GPUs for every picture
        torch.default_generator.manual_seed(hash((self.seed, epoch, index)))
        try:
            tensor = self.transform(image)
        finally:
            torch.set_rng_state(state)
        return tensor, label


class TrainingSampler(Sampler[list[Key]]):
    """Batches of (epoch, place) of one rank, in an order given by (seed, epoch).

    A step takes `accumulate` batches of `batch_size` pictures from each of `world` ranks. All that
    a step takes depends on the product of the three alone. Pictures that do not fill a last step
    wait for another epoch, unless there is no other step.

    Set `epoch`, and `first_step` to begin within it.
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
        """With `balanced`, pictures are drawn with replacement, those of each class as often."""
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
        """Pictures in a full step, of all ranks."""
        return self.batch_size * self.accumulate * self.world

    def order(self) -> list[int]:
        """Places of the pictures in this epoch."""
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        if not self.balanced:
            return torch.randperm(len(self.labels), generator=generator).tolist()
        weights = 1 / torch.from_numpy(np.bincount(self.labels))[self.labels].double()
        return torch.multinomial(weights, len(weights), True, generator=generator).tolist()

    def batches(self, step: int, order: list[int] | None = None) -> list[list[Key]]:
        """The batches of this rank in one step of this epoch."""
        order = self.order() if order is None else order
        across = self.batch_size * self.world
        starts = range(step * self.step_size, (step + 1) * self.step_size, across)
        places = [
            order[start + self.rank * self.batch_size :][: self.batch_size] for start in starts
        ]
        return [[(self.epoch, place) for place in own] for own in places if own]

    def __len__(self) -> int:
        pictures = min(len(self.labels), self.step_size)  # of a step
        return (self.steps - self.first_step) * -(-pictures // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order()
        for step in range(self.first_step, self.steps):
            yield from self.batches(step, order)


class PlainSampler(Sampler[Key]):
    """Every picture once, as they stand, dealt out to the ranks."""

    def __init__(self, length: int, rank: int = 0, world: int = 1) -> None:
        self.places = range(rank, length, world)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Key]:
        return iter([(0, place) for place in self.places])


def training_loader(
    dataset: PictureDataset, sampler: TrainingSampler, *, workers: int = 0, pin: bool = False
) -> DataLoader[Any]:
    """Batches of (pictures (B, C, S, S), labels (B,)), in the sampler's order.

    Args:
        workers: processes that read pictures; 0 for none besides this one.
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
    """As `training_loader`, but every picture once, as they stand, dealt out to the ranks."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=PlainSampler(len(dataset), rank, world),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=ignore_pillow_warnings,
    )
