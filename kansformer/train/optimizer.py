"""AdamW with learning rates and weight decay by kind and depth of parameters, and its schedule."""

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

# Factors on the learning rate of splines that start at zero beside an MLP. At the rate of the
# weights they move too slowly; the many splines of full edges are unstable at ten times that rate.
# Digits, 100 steps from a warm start at 1e-3 with warm-up, final loss: MLP 0.049 and 0.051 (two
# seeds), group-kan 0.045 and 0.043, full kan at factors 1, 3 and 10 0.044, 0.037 and 0.045 (first
# seed).
SPLINE_RATES = {"group-kan": 10.0, "kan": 3.0}
# parameters before the first block; all other names that are not a block's come after the last one
EMBEDDING = ("patch_embed.", "pos_embed", "cls_token", "dist_token", "reg_token")


def make_optimizer(model: VisionTransformer, config: TrainConfig) -> AdamW:
    """AdamW over all parameters; frozen ones have no gradient and stay as they are.

    Splines have a separate learning rate and weight decay (`--spline-lr`, `--spline-decay`). Among
    the other parameters, vectors (norms, biases) and `model.no_weight_decay()` are not decayed.
    With layer decay d, the rate of each block is d times that of the next one, and the embedding
    counts as one more block before the first (BEiT, as in timm).
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
            default = beside_mlp if block else 1.0  # the splines of a KAN head replace no MLP
            rate *= default if config.spline_lr is None else config.spline_lr
        undecayed = parameter.ndim < 2 or name in exempt
        decay = config.spline_decay if spline else 0.0 if undecayed else config.weight_decay
        groups[rate, decay].append(parameter)
    return AdamW(
        [
            {"params": parameters, "lr_scale": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        lr=config.lr,
        fused=True,  # one pass over the weights: saves 5 % of a small model's step on a CPU
    )


def make_schedule(optimizer: AdamW, config: TrainConfig, steps_per_epoch: int) -> CosineLRScheduler:
    """Learning rate by step: linear warm-up, then a cosine from --lr down to --lr x --lrf.

    The warm-up takes at most a fifth of the run. Each parameter group multiplies the rate by its
    `lr_scale`.
    """
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 5)
    return CosineLRScheduler(
        optimizer,
        # timm accepts no cosine of one step; of two, the first step has the highest rate
        t_initial=max(total - warmup, 2),
        lr_min=config.lr * config.lrf,
        warmup_t=warmup,
        warmup_lr_init=config.lr / max(warmup, 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def make_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler, which is active with float16 only."""
    return torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")


def learning_rate(optimizer: AdamW) -> float:
    """The current learning rate, without the `lr_scale` of the parameter groups."""
    group = max(optimizer.param_groups, key=lambda group: group["lr_scale"])
    return group["lr"] / group["lr_scale"]


def is_spline(name: str) -> bool:
    """Whether the parameter of that name belongs to a spline."""
    return name.endswith((".spline_weight", ".spline_scaler"))


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Clips the gradient norm of the splines and that of all other parameters, separately.

    The two differ in scale; clipped together, the splines' gradient would hold the weights back.

    Returns:
        The norm of the whole gradient before clipping, a scalar on the model's device.
    """
    norms = []
    for splines in (True, False):
        parameters = [p for name, p in model.named_parameters() if is_spline(name) == splines]
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.hypot(*norms)
