"""What a conversion gives: tensors under our names, and what became of each of the file's."""

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

    Built up by one function per format, from a state dict and nothing else. Tensors that no call
    here has named stay in `left`; the caller refuses them.

    Attributes:
        format: name of the format, for people.
        left: tensors of the file that nothing has been done with yet.
        state: tensors under our names.
        sources: for each of our names, the file's names that it comes from.
        how: for each of our names that is not simply taken over, what was done.
        skipped: the file's tensors that are left out by design, with the reason.
        config: fields of `ViTConfig` that the format implies and shapes do not show.
        preprocessing: fields of `Preprocessing` that the format implies.
        assumption: what a user ought to know about that, if the format does not tell for sure.
        resampling: interpolation and antialiasing with which timm resizes this format.
        notes: what else a user ought to know.
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
        """Takes over every tensor whose name one of the rules (pattern, replacement) matches."""
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
        """Makes one of our tensors from some of the file's.

        Raises:
            ValueError: one of them is not there, ours is made already, or shapes do not fit.
        """
        missing = [name for name in names if name not in self.left]
        if missing:
            raise ValueError(f"{missing[0]} is missing beside {names[0]}")
        if ours in self.state:
            raise ValueError(f"{names[0]} and {self.sources[ours][0]} are both {ours}")
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
        """Leaves out, by design, the tensors whose names the pattern matches at the start."""
        for name in [name for name in self.left if re.match(pattern, name)]:
            self.skipped[name] = reason
            del self.left[name]

    def fold_class_position(self) -> None:
        """Adds the class token's position to the token, so that only patches have positions.

        For files where the positions have an entry for the class token and none for registers.
        """
        positions = self.state["pos_embed"]
        self.state["cls_token"] = self.state["cls_token"] + positions[:, :1]
        self.state["pos_embed"] = positions[:, 1:]
        self.sources["cls_token"] += self.sources["pos_embed"]
        self.how["cls_token"] = "its position added"
        self.how["pos_embed"] = "class token's entry split off"


def join_qkv(conversion: Conversion, layer: str, names: Sequence[str]) -> None:
    """Joins the three matrices, and biases, of each attention layer into timm's one.

    Args:
        layer: a pattern for what stands before the names below; its group is the block's number.
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
