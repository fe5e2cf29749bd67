"""The result of a conversion: tensors under our names, and what became of the file's tensors."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]


@dataclass
class Conversion:
    """Tensors of a file under the names of `VisionTransformer`, which are timm's.

    One function per format builds it, from the state dict alone. Tensors that were neither
    converted nor skipped stay in `left`, and the caller rejects them.

    Attributes:
        format: name of the format, for people.
        left: tensors of the file that are neither converted nor skipped yet.
        state: tensors under our names.
        sources: for each of our names, the file's tensors that it was made of.
        how: for each of our tensors that is not an unchanged copy, what was done.
        skipped: the file's tensors that are not used, by design, with the reason.
        config: fields of `ViTConfig` that follow from the format but not from the shapes.
        preprocessing: fields of `Preprocessing` that follow from the format.
        assumption: a note for the user if the format leaves the preprocessing open.
        resampling: interpolation and antialiasing with which timm resizes this format.
        notes: other notes for the user.
    """

    format: str
    left: StateDict
    state: StateDict = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    assumption: str = ""
    resampling: tuple[str, bool] = ("bicubic", True)
    notes: list[str] = field(default_factory=list)

    def rename(self, rules: Rules) -> None:
        """Renames every tensor whose name matches one of the rules (pattern, replacement)."""
        for name in list(self.left):
            for pattern, replacement in rules:
                match = re.fullmatch(pattern, name)
                if match:
                    ours = match.expand(replacement)
                    self.make(ours, (name,), "" if ours == name else "renamed")
                    break

    def make(
        self,
        ours: str,
        names: tuple[str, ...],
        how: str,
        function: Callable[..., Tensor] = lambda tensor: tensor,
    ) -> None:
        """Makes our tensor `ours` from the file's tensors `names`.

        Raises:
            ValueError: a tensor is missing, `ours` exists already, or shapes do not fit.
        """
        missing = [name for name in names if name not in self.left]
        if missing:
            raise ValueError(f"{missing[0]} is missing beside {names[0]}")
        if ours in self.state:
            raise ValueError(f"{names[0]} and {self.sources[ours][0]} both map to {ours}")
        try:
            self.state[ours] = function(*(self.left[name] for name in names))
        except (RuntimeError, IndexError) as error:
            cause = " ".join(str(error).split())[:120]
            raise ValueError(f"shapes of {', '.join(names)} do not fit ({cause})") from None
        for name in names:
            del self.left[name]
        self.sources[ours] = names
        if how:
            self.how[ours] = how

    def skip(self, pattern: str, reason: str) -> None:
        """Skips, by design, the tensors whose names start with a match of the pattern."""
        for name in [name for name in self.left if re.match(pattern, name)]:
            self.skipped[name] = reason
            del self.left[name]

    def fold_class_position(self) -> None:
        """Adds the class token's position to the token, so that only patches have positions.

        For files that have a position for the class token but none for the registers.
        """
        positions = self.state["pos_embed"]
        self.state["cls_token"] = self.state["cls_token"] + positions[:, :1]
        self.state["pos_embed"] = positions[:, 1:]
        self.sources["cls_token"] += self.sources["pos_embed"]
        self.how["cls_token"] = "its position added"
        self.how["pos_embed"] = "without the class token's entry"


def join_qkv(conversion: Conversion, layer: str, names: Sequence[str]) -> None:
    """Joins each attention layer's query, key and value weights, and biases, into timm's `qkv`.

    Args:
        layer: a pattern for the prefix of the names below; its group is the block's number.
        names: the file's names of queries, keys and values.
    """
    for name in list(conversion.left):
        match = re.fullmatch(rf"({layer}){re.escape(names[0])}\.(weight|bias)", name)
        if match:
            start, block, kind = match.groups()
            parts = tuple(f"{start}{part}.{kind}" for part in names)
            conversion.make(
                f"blocks.{block}.attn.qkv.{kind}", parts, "joined", lambda *t: torch.cat(t)
            )
