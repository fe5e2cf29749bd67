"""Loss and accuracy over a loader, and the best epoch of a training run by either."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kansformer.data.dataset import NO_LABEL
from models.kan import compile_without_gradients


@torch.no_grad()
@compile_without_gradients()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    gather: Callable[[Tensor], list[list[float]]] | None = None,
) -> dict[str, float]:
    """Mean cross-entropy and top-1 accuracy of a model in eval mode; its mode is restored.

    Args:
        batches: (images, labels); pictures labelled `NO_LABEL` are not counted.
        gather: with several ranks, returns the sums (3,) of each rank.

    Returns:
        `loss` in nats, `acc1` in percent, and `count`, the number of pictures.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, device=device)  # loss, correct, count: exact up to 16 million pictures
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        logits = model(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=NO_LABEL)
        hits = (logits.argmax(dim=-1) == labels).sum()
        sums += torch.stack([loss, hits, (labels != NO_LABEL).sum()])
    model.train(was_training)
    rows = [sums.tolist()] if gather is None else gather(sums)
    loss, correct, count = (sum(column) for column in zip(*rows, strict=True))
    return {
        "loss": loss / max(count, 1),
        "acc1": 100 * correct / max(count, 1),
        "count": int(count),
    }


def best_epoch(history: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The row of metrics.jsonl with the best validation metric.

    Args:
        history: the rows, at least one.
        metric: "acc1" for the highest accuracy (at a tie, the lower loss), or "loss" for the lowest
            loss.
    """
    if metric == "loss":
        return min(history, key=lambda row: row["val_loss"])
    return max(history, key=lambda row: (row["val_acc1"], -row["val_loss"]))
