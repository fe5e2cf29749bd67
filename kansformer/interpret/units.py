"""The classes, pictures and patches that activate the hidden units of a block."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.interpret.block_activations import block_records, tokens_that_matter
from models.vit_model import VisionTransformer, ViTConfig


@dataclass(frozen=True)
class UnitUse:
    """When the hidden units of a block are active.

    A unit's activation is its value at the input of the block's second layer.

    Attributes:
        class_means: (classes, hidden) mean over the pictures of a class and their tokens; NaN for
            a class without pictures.
        values: (hidden, k) the highest activations, best first, each in a different picture.
        pictures: (hidden, k) indices of these pictures, in the order of the loader.
        patches: (hidden, k) indices of the patches, row by row; -1 for a class token.
    """

    class_means: Tensor
    values: Tensor
    pictures: Tensor
    patches: Tensor


@torch.no_grad()
def unit_use(
    model: VisionTransformer, batches: Iterable[tuple[Tensor, Tensor]], top: int = 8
) -> list[UnitUse]:
    """For each block: mean activation per class, and the top pictures and patches of each unit.

    Class and register tokens are left out, except in the last block if the head reads only them.

    Args:
        batches: (pictures (B, C, H, W), labels (B,)).
        top: pictures per unit.

    Raises:
        ValueError: there are no pictures.
    """
    tallies = [_Tally(model.config, block, top) for block in range(model.config.depth)]
    count = 0
    for images, labels in batches:
        for tally, record in zip(tallies, block_records(model, images), strict=True):
            tally.add(record.hidden.float().cpu(), labels, count)
        count += len(images)
    if not count:
        raise ValueError("there are no pictures")
    return [tally.use() for tally in tallies]


class _Tally:
    """Accumulates the `UnitUse` of one block over batches."""

    def __init__(self, config: ViTConfig, block: int, top: int) -> None:
        self.prefix, self.top = config.prefix_tokens, top
        last = block == config.depth - 1
        self.tokens = tokens_that_matter(config, block) if last else slice(self.prefix, None)
        hidden = config.block_widths[block]
        self.sums = torch.zeros(config.num_classes, hidden)
        self.counts = torch.zeros(config.num_classes)
        self.values = torch.zeros(hidden, 0)
        self.pictures = torch.zeros(hidden, 0, dtype=torch.long)
        self.patches = torch.zeros(hidden, 0, dtype=torch.long)

    def add(self, hidden: Tensor, labels: Tensor, first: int) -> None:
        """Adds activations (B, T, hidden) of a batch whose first picture has index `first`."""
        labels = labels.long()  # of any integer type
        numbers = torch.arange(hidden.shape[1])[self.tokens] - self.prefix
        hidden = hidden[:, self.tokens]
        self.sums.index_add_(0, labels, hidden.mean(dim=1))
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        values, tokens = hidden.max(dim=1)  # (B, hidden)
        pictures = torch.arange(first, first + len(labels))[:, None].expand_as(tokens)
        values = torch.cat([self.values, values.T], dim=1)
        best = values.argsort(dim=1, descending=True, stable=True)[:, : self.top]
        self.values = values.gather(1, best)
        self.pictures = torch.cat([self.pictures, pictures.T], dim=1).gather(1, best)
        patches = numbers[tokens].clamp_min(-1)
        self.patches = torch.cat([self.patches, patches.T], dim=1).gather(1, best)

    def use(self) -> UnitUse:
        means = self.sums / self.counts[:, None]
        return UnitUse(means, self.values, self.pictures, self.patches)
