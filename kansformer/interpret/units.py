"""What the hidden units of a block answer to: classes, pictures and patches."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.interpret.recording import block_records, tokens_that_matter
from models.vit_model import VisionTransformer


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
    model: VisionTransformer, batches: Iterable[tuple[Tensor, Tensor]], block: int, top: int = 8
) -> UnitUse:
    """Mean activation by class, and the pictures and patches that excite each unit most.

    Class and register tokens count only in the last block, if the head reads nothing else.

    Args:
        batches: of (pictures (B, C, H, W), labels (B,)).
        top: pictures for each unit.

    Raises:
        ValueError: there are no pictures.
    """
    config = model.config
    prefix = config.prefix_tokens
    counted = tokens_that_matter(config, block)
    if block < config.depth - 1:
        counted = slice(prefix, None)
    hidden = config.block_widths[block]
    sums = torch.zeros(config.num_classes, hidden)
    counts = torch.zeros(config.num_classes)
    best: tuple[Tensor, ...] = ()
    seen = 0
    for images, labels in batches:
        full = block_records(model, images)[block].hidden.float().cpu()  # (B, T, hidden)
        numbers = torch.arange(full.shape[1])[counted] - prefix
        full = full[:, counted]
        sums.index_add_(0, labels, full.mean(dim=1))
        counts += torch.bincount(labels, minlength=config.num_classes)
        values, places = full.max(dim=1)  # (B, hidden)
        pictures = torch.arange(seen, seen + len(images))[:, None].expand_as(values)
        found = (values.T, pictures.T, numbers[places].clamp_min(-1).T)
        if best:
            found = tuple(torch.cat(pair, dim=1) for pair in zip(best, found, strict=True))
        order = found[0].argsort(dim=1, descending=True, stable=True)[:, :top]
        best = tuple(part.gather(1, order) for part in found)
        seen += len(images)
    if not best:
        raise ValueError("there are no pictures to look at")
    return UnitUse(sums / counts[:, None], *best)
