"""--tune: which parameters of a model train; the others are frozen."""

import re
from collections.abc import Iterable

from timm.layers import LayerScale
from torch import nn

from kansformer.train.config import TrainConfig
from kansformer.train.optimizer import is_spline
from kansformer.words import number
from models.vit_model import VisionTransformer

HEADS = ("head.", "head_dist.")
AFTER_BLOCKS = (*HEADS, "pre_logits.", "norm.", "fc_norm.")


def trained_names(model: VisionTransformer, parts: frozenset[str], unfrozen: int = 0) -> list[str]:
    """The names of the parameters that train, in the model's order.

    Args:
        parts: of the model, one or several of
            "all";
            "head": the classifier, of whatever kind, and the last norm before it;
            "splines": the learned functions of the blocks;
            "norms": gain and bias of every LayerNorm, and the factors of LayerScale, which are
                gains of a branch;
            "biases": every bias, those of the norms included (BitFit, Zaken et al., 2022).
        unfrozen: number of blocks, from the last, that train as a whole. If it is all of them, the
            embedding trains too.
    """
    first = model.config.depth - unfrozen
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | LayerScale)
        for name, _ in module.named_parameters()
    }

    def trains(name: str) -> bool:
        block = re.match(r"blocks\.(\d+)\.", name)
        return (
            "all" in parts
            or first <= 0
            or (block is not None and int(block[1]) >= first)
            or ("head" in parts and name.startswith(AFTER_BLOCKS))
            or ("splines" in parts and block is not None and is_spline(name))
            or ("norms" in parts and name in norms)
            or ("biases" in parts and name.endswith(".bias"))
        )

    return [name for name, _ in model.named_parameters() if trains(name)]


def train_only(model: nn.Module, names: Iterable[str]) -> None:
    """Freezes all parameters except those of these names."""
    trained = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def unfrozen_blocks(config: TrainConfig, epoch: int) -> int:
    """How many blocks --unfreeze-every has unfrozen in an epoch, counted from 0."""
    return epoch // config.unfreeze_every if config.unfreeze_every else 0


def names_in_epoch(model: VisionTransformer, config: TrainConfig, epoch: int) -> list[str]:
    """The names of the parameters that train in an epoch, counted from 0.

    A head that is fitted to features leaves the last norm as it is.
    """
    if config.head_only:
        return [name for name, _ in model.named_parameters() if name.startswith(HEADS)]
    return trained_names(model, config.tuned, unfrozen_blocks(config, epoch))


def count_trained(model: nn.Module, names: Iterable[str]) -> int:
    """The number of parameters, as single numbers, under these names."""
    trained = set(names)
    return sum(p.numel() for name, p in model.named_parameters() if name in trained)


def describe_trained(model: VisionTransformer, parts: frozenset[str], unfrozen: int = 0) -> str:
    """What trains, in short: "2,882 of 461,306 parameters: head and last norm, splines of ...".

    Args:
        parts, unfrozen: as for `trained_names`.
    """
    depth = model.config.depth
    blocks = number(depth, "block")
    texts = {
        "head": "head and last norm",
        "splines": f"splines of {blocks}",
        "norms": "all norms",
        "biases": "all biases",
    }
    listed = [text for part, text in texts.items() if part in parts]
    if unfrozen:
        listed.append("the last block" if unfrozen == 1 else f"the last {unfrozen} blocks")
    if "all" in parts or unfrozen >= depth:
        listed = ["all"]
    total = sum(p.numel() for p in model.parameters())
    trained = count_trained(model, trained_names(model, parts, unfrozen))
    return f"{trained:,} of {total:,} parameters: {', '.join(listed)}"
