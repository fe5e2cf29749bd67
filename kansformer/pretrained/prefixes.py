"""What trainers and wrappers put before the names of a ViT's tensors, and beside the ViT."""

import re
from dataclasses import dataclass, field

from torch import Tensor

# Of modules that only pass on what they wrap: DataParallel, torch.compile, FSDP and checkpointing.
# They may stand anywhere in a name.
WRAPPED = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_(?:fsdp|checkpoint)_wrapped_module)\.")
# The first weight of a ViT, in each of the formats whose names have dots; before it, the prefix.
FIRST = re.compile(
    r"(?P<prefix>(?:.*\.)?)"
    r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection|conv_proj)\.weight"
)
AVERAGED = re.compile(r"(?:^|[._])(?:ema|teacher)(?=[._])")
# What may stand beside a ViT and be part of the model: Hugging Face's and DINO's heads, decoders.
HEADS = ("head", "head_dist", "classifier", "cls_classifier", "distillation_classifier", "pooler",
         "decoder")  # fmt: skip
BESIDE = "beside the ViT, not of it"


@dataclass(frozen=True)
class Stripped:
    """A ViT's tensors under its own names.

    Attributes:
        tensors: also the heads beside the ViT.
        prefixes: what was taken off, part by part.
        beside: names of those heads, of which some may belong to another model.
        skipped: names of the tensors that were left out, such as those of metrics and losses.
    """

    tensors: dict[str, Tensor]
    prefixes: tuple[str, ...] = ()
    beside: frozenset[str] = frozenset()
    skipped: tuple[str, ...] = field(default=())


def strip_prefixes(state: dict[str, Tensor]) -> Stripped:
    """Takes off whatever stands before the names of a ViT, and leaves out what is beside it.

    The prefix is what stands before the first weight of the one ViT that there is; averaged weights
    (EMA, a teacher), the better ones, are preferred. Heads are kept that stand one level above,
    where Hugging Face has them: `vit.embeddings...` and `classifier.weight`. Tensors that are not a
    ViT's stay as they are.

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
    own = {n.removeprefix(prefix): value for n, value in plain.items() if n.startswith(prefix)}
    heads, skipped = {}, []
    for name, value in plain.items():
        if name.startswith(prefix):
            continue
        inner = name.removeprefix(outer)
        if name.startswith(outer) and inner.split(".")[0] in HEADS and inner not in own:
            heads[inner] = value
        else:
            skipped.append(name)
    return Stripped({**own, **heads}, (*wrappers, *parts), frozenset(heads), tuple(skipped))


def _prefix_of_vit(state: dict[str, Tensor]) -> str:
    """What stands before the names of the ViT; empty without one, too."""
    found = {match["prefix"] for name in state if (match := FIRST.fullmatch(name))}
    if len(found) > 1:
        found = {prefix for prefix in found if AVERAGED.search(prefix)} or found
    if len(found) > 1:
        named = ", ".join(sorted(prefix or "no prefix" for prefix in found)[:3])
        raise ValueError(f"it holds {len(found)} ViTs, under {named}; save the state dict of one")
    return next(iter(found), "")
