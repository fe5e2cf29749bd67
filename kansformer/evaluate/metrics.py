"""Loss and accuracy over a loader."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> dict[str, float]:
    """Mean cross-entropy and top-1 accuracy of a model in eval mode; its mode is put back.

    Returns:
        `loss` in nats, `acc1` in percent, and `count`, the number of pictures.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=device, dtype=torch.float32)
    correct = torch.zeros((), device=device, dtype=torch.long)
    count = 0
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        logits = model(images).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(dim=-1) == labels).sum()
        count += len(labels)
    model.train(was_training)
    return {
        "loss": loss.item() / count,
        "acc1": 100 * correct.item() / count,
        "count": count,
    }
