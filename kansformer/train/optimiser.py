"""AdamW with the model's own exemptions from decay, and a warm-up followed by a cosine."""

from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch.optim import AdamW

from kansformer.train.config import TrainConfig
from models.vit_model import VisionTransformer


def make_optimiser(model: VisionTransformer, config: TrainConfig) -> AdamW:
    """AdamW over the trainable parameters.

    No decay on vectors (norms, biases), nor on what `model.no_weight_decay()` names.
    """
    groups = param_groups_weight_decay(
        model, config.weight_decay, no_weight_decay_list=model.no_weight_decay()
    )
    return AdamW(groups, lr=config.lr)


def make_schedule(optimiser: AdamW, config: TrainConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """The rate of each step: linear warm-up, then a cosine from --lr to --lr x --lrf."""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    return CosineLRScheduler(
        optimiser,
        t_initial=max(total - warmup, 1),
        lr_min=config.lr * config.lrf,
        warmup_t=warmup,
        warmup_lr_init=config.lr / max(warmup, 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
