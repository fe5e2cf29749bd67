"""AdamW, with rates and decays by kind and depth of parameters; a warm-up before a cosine."""

import re
from collections import defaultdict
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from kansformer.train.config import TrainConfig
from models.vit_model import VisionTransformer, starts_as_mlp

# Rates of splines that start at zero beside an MLP: at that of the weights they move too slowly,
# and full edges, which are many, are unsteady at ten times it. Digits, 100 steps from a warm start
# at 1e-3 with warm-up, loss at the end: MLP 0.049 and 0.051 (two seeds), group-kan 0.045 and 0.043,
# full kan at 1, 3 and 10 times the rate 0.044, 0.037 and 0.045 (first seed).
SPLINE_RATES = {"group-kan": 10.0, "kan": 3.0}
# in front of the first block, with all other names behind the last one
EMBEDDING = ("patch_embed.", "pos_embed", "cls_token", "dist_token", "reg_token")


def make_optimiser(model: VisionTransformer, config: TrainConfig) -> AdamW:
    """AdamW over all parameters; one that is frozen, without a gradient, stays as it is.

    Splines have a rate and a decay of their own. Of the rest, vectors (norms, biases) and what
    `model.no_weight_decay()` names have no decay. With a layer decay d, the rate of a block is d
    times that of the next; what is in front of the first counts as one more (BEiT, as in timm).
    """
    beside_mlp = SPLINE_RATES[model.config.ffn] if starts_as_mlp(model.config) else 1.0
    exempt, depth = model.no_weight_decay(), model.config.depth
    groups: dict[tuple[float, float], list[Any]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        spline = is_spline(name)
        block = re.match(r"blocks\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else 0 if name.startswith(EMBEDDING) else depth + 1
        rate = config.layer_decay ** (depth + 1 - layer)
        if spline:
            default = beside_mlp if block else 1.0  # a KAN head starts with splines
            rate *= default if config.spline_lr is None else config.spline_lr
        kept = parameter.ndim < 2 or name in exempt
        decay = config.spline_decay if spline else 0.0 if kept else config.weight_decay
        groups[rate, decay].append(parameter)
    return AdamW(
        [
            {"params": parameters, "lr_scale": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        lr=config.lr,
        fused=True,  # one pass over the weights: a twentieth of a small model's step on a CPU
    )


def is_spline(name: str) -> bool:
    """Whether a parameter of that name belongs to a spline."""
    return name.endswith((".spline_weight", ".spline_scaler"))


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Limits the norm of the gradient, of the splines apart from the rest.

    A spline's gradient is of another scale and would hold the weights back.

    Returns:
        The norm of the whole gradient before that, a scalar on the model's device.
    """
    norms = []
    for splines in (True, False):
        part = [p for name, p in model.named_parameters() if is_spline(name) == splines]
        norm = nn.utils.clip_grad_norm_(part, largest)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.hypot(*norms)


def make_schedule(optimiser: AdamW, config: TrainConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """The rate of each step: linear warm-up, then a cosine from --lr to --lr x --lrf.

    The warm-up takes a fifth of the run at most. Every group of parameters has the rate times its
    own scale.
    """
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 5)
    return CosineLRScheduler(
        optimiser,
        # one step has the highest rate; timm takes no cosine of one
        t_initial=max(total - warmup, 2),
        lr_min=config.lr * config.lrf,
        warmup_t=warmup,
        warmup_lr_init=config.lr / max(warmup, 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def learning_rate(optimiser: AdamW) -> float:
    """The rate at present, without the scales of the groups."""
    group = max(optimiser.param_groups, key=lambda group: group["lr_scale"])
    return group["lr"] / group["lr_scale"]
