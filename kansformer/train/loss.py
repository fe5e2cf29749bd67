"""The training loss: cross-entropy, mixup and cutmix, distillation, spline regularization."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kansformer.checkpoint import TrainedModel, load_model
from kansformer.data import PictureData, Preprocessing
from kansformer.data.dataset import NO_LABEL
from kansformer.errors import UserError
from kansformer.train.config import TrainConfig
from kansformer.words import number
from models.kan import GroupKANLinear, KANLinear

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_mix(config: TrainConfig, num_classes: int) -> Mix | None:
    """timm's mixup and cutmix, (images, labels) -> (images, targets (B, num_classes)), if enabled.

    A batch of odd size, which timm does not accept, is left unmixed.
    """
    if config.mixup == 0 and config.cutmix == 0:
        return None
    from timm.data.mixup import Mixup, mixup_target

    smoothing = config.label_smoothing
    mixup = Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=num_classes)

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) % 2:
            return images, mixup_target(labels, num_classes, smoothing=smoothing)
        return mixup(images, labels)

    return mix


class Criterion:
    """The loss of each picture of a batch, (B,) in nats.

    Cross-entropy CE with smoothed labels or mixed targets, weighted by class. With a teacher of
    weight a and temperature T it is (1 - a) CE + a T² KL(teacher || student), where the logits of
    both are divided by T (Hinton et al., 2015).

    Args:
        label_smoothing: share of the target that is spread over all classes.
        class_weights: (num_classes,)
        teacher: a function from pictures (B, C, S, S) to logits (B, num_classes).
        teacher_weight, temperature: a and T.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
        teacher_weight: float = 0.5,
        temperature: float = 2.0,
    ) -> None:
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.teacher = teacher
        self.teacher_weight, self.temperature = teacher_weight, temperature

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """Losses (B,).

        Args:
            logits: (B, num_classes)
            targets: labels (B,), or mixed targets (B, num_classes), which are smoothed already.
            images: (B, C, S, S), for the teacher.
        """
        logits = logits.float()  # under autocast they may have lower precision
        smoothing = 0.0 if targets.ndim == 2 else self.label_smoothing
        losses = F.cross_entropy(
            logits, targets, self.class_weights, reduction="none", label_smoothing=smoothing,
            ignore_index=NO_LABEL,
        )  # fmt: skip
        if self.teacher is None:
            return losses
        with torch.no_grad():
            teacher = (self.teacher(images).float() / self.temperature).log_softmax(dim=-1)
        student = (logits / self.temperature).log_softmax(dim=-1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
        a = self.teacher_weight
        return (1 - a) * losses + a * self.temperature**2 * divergence


def make_criterion(
    config: TrainConfig, data: PictureData, preprocessing: Preprocessing, device: torch.device
) -> Criterion:
    """The loss for these settings.

    Raises:
        UserError: the teacher does not know the classes.
    """
    weights = None
    if config.class_weights:
        weights = class_weights(data.train.labels, len(data.class_names)).to(device)
    teacher = None
    if config.teacher is not None:
        model = load_model(config.teacher).to(device)
        teacher = as_teacher(model, data.class_names, preprocessing)
    return Criterion(
        config.label_smoothing, weights, teacher, config.teacher_weight, config.teacher_temperature
    )


def class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """Weights (num_classes,) that balance the classes; their mean over all pictures is 1."""
    counts = np.bincount(labels, minlength=num_classes).clip(min=1)
    return torch.tensor(len(labels) / (num_classes * counts), dtype=torch.float32)


def as_teacher(
    model: TrainedModel, class_names: Sequence[str], preprocessing: Preprocessing
) -> Callable[[Tensor], Tensor]:
    """A trained model as a function of another model's inputs.

    Pictures are renormalized and resized to what the teacher was trained with.

    Args:
        class_names: in the order in which the function gives their logits.
        preprocessing: of the other model.

    Raises:
        UserError: the teacher lacks one of the classes, or has another number of channels.
    """
    missing = [name for name in class_names if name not in model.class_names]
    if missing:
        raise UserError(
            f"--teacher knows no class {missing[0]}; it must know all classes of the data"
        )
    theirs = model.preprocessing
    if theirs.in_chans != preprocessing.in_chans:
        raise UserError(
            f"--teacher takes {number(theirs.in_chans, 'channel')}, the model"
            f" {preprocessing.in_chans}; set --in-chans"
        )
    order = [model.class_names.index(name) for name in class_names]
    device = model.pos_embed.device
    scale, shift = (
        torch.as_tensor(value, dtype=torch.float32, device=device).reshape(-1, 1, 1)
        for value in (
            np.divide(preprocessing.std, theirs.std),
            np.divide(np.subtract(preprocessing.mean, theirs.mean), theirs.std),
        )
    )

    def teach(images: Tensor) -> Tensor:
        if theirs.img_size != preprocessing.img_size:
            size = [theirs.img_size, theirs.img_size]
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return model(images * scale + shift)[:, order]

    return teach


def spline_penalty(model: nn.Module) -> Tensor:
    """The sum of `regularization_loss` over all KAN layers, a scalar."""
    losses = [
        module.regularization_loss()
        for module in model.modules()
        if isinstance(module, KANLinear | GroupKANLinear)
    ]
    return torch.stack(losses).sum()
