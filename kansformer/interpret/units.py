"""What the hidden units of a block answer to: classes, pictures and patches."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.interpret.block_activations import block_records, tokens_that_matter
from models.vit_model import VisionTransformer, ViTConfig


@dataclass(frozen=True)
class UnitUse:
    """When the hidden units of a block are active.

    A unit's activation is what the block's second layer is given of it.

    Attributes:
        class_means: (classes, hidden) mean over the pictures of a class and their tokens; NaN for
            a class without pictures.
        values: (hidden, k) the highest activations, best first, each of another picture.
        pictures: (hidden, k) numbers of these pictures, in the order of the loader.
        patches: (hidden, k) numbers of the patches, row by row; -1 for a class token.
    """

    class_means: Tensor
    values: Tensor
    pictures: Tensor
    patches: Tensor


@torch.no_grad()
def unit_use(
    model: VisionTransformer, batches: Iterable[tuple[Tensor, Tensor]], top: int = 8
) -> list[UnitUse]:
    """Mean activation by class, and the pictures and patches that excite each unit most, by block.

    Class and register tokens count only in the last block, if the head reads nothing else.

    Args:
        batches: of (pictures (B, C, H, W), labels (B,)).
        top: pictures for each unit.

    Raises:
        ValueError: there are no pictures.
    """
    tallies = [_Tally(model.config, block, top) for block in range(model.config.depth)]
    count = 0
    for images, labels in batches:
        for tally, own in zip(tallies, block_records(model, images), strict=True):
            tally.add(own.hidden.float().cpu(), labels, count)
        count += len(images)
    if not count:
        raise ValueError("there are no pictures to look at")
    return [tally.use() for tally in tallies]


class _Tally:
    """The `UnitUse` of one block, batch by batch."""

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
        """Counts pictures, the first of which has that number; hidden is (B, T, hidden)."""
        labels = labels.long()  # of any integer type
        numbers = torch.arange(hidden.shape[1])[self.tokens] - self.prefix
        hidden = hidden[:, self.tokens]
        self.sums.index_add_(0, labels, hidden.mean(dim=1))
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        values, places = hidden.max(dim=1)  # (B, hidden)
        pictures = torch.arange(first, first + len(labels))[:, None].expand_as(places)
        values = torch.cat([self.values, values.T], dim=1)
        best = values.argsort(dim=1, descending=True, stable=True)[:, : self.top]
        self.values = values.gather(1, best)
        self.pictures = torch.cat([self.pictures, pictures.T], dim=1).gather(1, best)
        patches = numbers[places].clamp_min(-1)
        self.patches = torch.cat([self.patches, patches.T], dim=1).gather(1, best)

    def use(self) -> UnitUse:
        means = self.sums / self.counts[:, None]
        return UnitUse(means, self.values, self.pictures, self.patches)
