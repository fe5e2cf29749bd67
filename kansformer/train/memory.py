"""Batches in pieces, where memory is short."""

import torch

from kansformer.errors import JobFailed
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.train.loss import Criterion
from models.vit_model import VisionTransformer


def pieces_that_fit(
    model: VisionTransformer, config: TrainConfig, criterion: Criterion, ranks: Ranks
) -> int:
    """The number of pieces, a power of two, in which a batch passes forward and backward.

    Tried on pictures of noise with room set aside for the optimiser. All ranks take the same
    number, and gradients are summed over the pieces, so that a step stays what it was.

    Raises:
        JobFailed: not even one picture fits.
    """
    settings, device = model.config, ranks.device
    pieces = 1
    while not _fits(model, criterion, -(-config.batch_size // pieces), device):
        if pieces >= config.batch_size:
            raise JobFailed(
                f"not even one picture of {settings.img_size} x {settings.img_size} fits into the"
                " memory; take a smaller --model or --img-size"
            )
        pieces *= 2
    rows = ranks.gather(torch.tensor([float(pieces)], device=device))
    return int(max(row[0] for row in rows))


def _fits(
    model: VisionTransformer, criterion: Criterion, batch_size: int, device: torch.device
) -> bool:
    settings = model.config
    shape = (batch_size, settings.in_chans, settings.img_size, settings.img_size)
    try:
        moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        images = torch.rand(shape, device=device)
        labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        criterion(model(images), labels, images).mean().backward()
        del moments
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:  # the CPU's allocator has no class of its own
        if "allocate memory" not in str(error):
            raise
        return False
    finally:
        model.zero_grad()
        if device.type != "cpu":
            torch.accelerator.empty_cache()
    return True
