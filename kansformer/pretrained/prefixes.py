"""Strips the prefixes that trainers put before a ViT's tensor names, and the tensors beside it."""

import re
from dataclasses import dataclass, field

from torch import Tensor

# Added by modules that wrap another: DataParallel, torch.compile, FSDP and activation
# checkpointing. They may occur anywhere in a name.
WRAPPED = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_(?:fsdp|checkpoint)_wrapped_module)\.")
# The prefix, then the first weight of a ViT, in each of the formats whose names have dots.
FIRST = re.compile(
    r"(?P<prefix>(?:.*\.)?)"
    r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection|conv_proj)\.weight"
)
AVERAGED = re.compile(r"(?:^|[._])(?:ema|teacher)(?=[._])")
# Modules beside a ViT that may be part of the model: Hugging Face's and DINO's heads, decoders.
HEADS = ("head", "head_dist", "classifier", "cls_classifier", "distillation_classifier", "pooler",
         "decoder")  # fmt: skip
BESIDE = "not part of the ViT"


@dataclass(frozen=True)
class Stripped:
    """A ViT's tensors under their names without a prefix.

    Attributes:
        tensors: the ViT's tensors, and those of heads beside it.
        prefixes: the parts of the stripped prefix.
        beside: names of the tensors of heads beside the ViT, which may belong to another model.
        skipped: names of the other tensors, such as those of metrics and losses.
    """

    tensors: dict[str, Tensor]
    prefixes: tuple[str, ...] = ()
    beside: frozenset[str] = frozenset()
    skipped: tuple[str, ...] = field(default=())


def strip_prefixes(state: dict[str, Tensor]) -> Stripped:
    """Strips the prefix of a ViT's tensor names, and skips the tensors beside the ViT.

    The prefix is everything before the ViT's first weight. Of several ViTs the averaged one (EMA,
    a teacher) is used, which is usually better. Heads one level above the ViT are kept, because
    Hugging Face has them there: `vit.embeddings...` and `classifier.weight`. A state dict without a
    ViT keeps all its tensors.

    Raises:
        ValueError: several ViTs, or one tensor with and without a prefix.
    """
    wrappers = dict.fromkeys(part for name in state for part in WRAPPED.findall(name))
    plain = {WRAPPED.sub("", name): value for name, value in state.items()}
    if len(plain) < len(state):
        raise ValueError(f"names with and without {' or '.join(wrappers)} contradict each other")
    prefix = _prefix_of_vit(plain)
    if not prefix:
        return Stripped(plain, tuple(wrappers))
    parts = re.findall(r"[^.]*\.", prefix)
    outer = "".join(parts[:-1])
    vit = {n.removeprefix(prefix): value for n, value in plain.items() if n.startswith(prefix)}
    heads, skipped = {}, []
    for name, value in plain.items():
        if name.startswith(prefix):
            continue
        inner = name.removeprefix(outer)
        if name.startswith(outer) and inner.split(".")[0] in HEADS and inner not in vit:
            heads[inner] = value
        else:
            skipped.append(name)
    return Stripped({**vit, **heads}, (*wrappers, *parts), frozenset(heads), tuple(skipped))


def _prefix_of_vit(state: dict[str, Tensor]) -> str:
    """The prefix of the ViT's names; empty if they have none, or if there is no ViT."""
    prefixes = {match["prefix"] for name in state if (match := FIRST.fullmatch(name))}
    if len(prefixes) > 1:
        prefixes = {prefix for prefix in prefixes if AVERAGED.search(prefix)} or prefixes
    if len(prefixes) > 1:
        named = ", ".join(sorted(prefix or "no prefix" for prefix in prefixes)[:3])
        count = len(prefixes)
        raise ValueError(f"it holds {count} ViTs, under {named}; save the state dict of one")
    return next(iter(prefixes), "")
