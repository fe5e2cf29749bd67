"""Fits narrow KAN blocks to the MLP blocks that they replace.

A KAN narrower than an MLP cannot start as the same function. It is fitted, block by block, to the
MLP's inputs and outputs on the training pictures; labels are not needed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kansformer.progress import progress_bar
from models.kan import KANFeedForward
from models.kan_grid import calibrate_grid
from models.vit_model import Block, VisionTransformer

TOKENS = 2**17  # of training pictures, to fit each block
HELD_OUT_TOKENS = 2**15  # of held-out pictures, to evaluate the fit
ROWS = 1024  # tokens per step
RATE = 1e-2  # Adam's maximum, in a one-cycle schedule


@dataclass(frozen=True)
class Distillation:
    """How well the blocks fit: the share of the MLP's variance explained on held-out pictures."""

    r2: tuple[float, ...]  # by block
    pictures: int  # used for the fit

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in config.json."""
        return asdict(self)

    def __str__(self) -> str:
        values = " ".join(f"{value:.3f}" for value in self.r2)
        return f"R² per block on held-out pictures {values}, median {median(self.r2):.3f}"


def distill(
    teacher: VisionTransformer,
    student: VisionTransformer,
    pictures: Iterable[Tensor],
    held_out: Iterable[Tensor],
    steps: int,
) -> Distillation:
    """Fits the student's KAN blocks in place to the teacher's MLP blocks.

    Args:
        teacher: a ViT with MLP blocks.
        student: the same with `KANFeedForward` blocks, on the same device.
        pictures: batches (B, C, H, W) for the fit, read until there are TOKENS tokens.
        held_out: batches (B, C, H, W) for the reported R².
        steps: optimizer steps per block.
    """
    states = [module.training for module in (teacher, student)]
    teacher.eval()
    student.eval()  # without dropout
    tokens = _embed(teacher, pictures, TOKENS)
    held_out_tokens = _embed(teacher, held_out, HELD_OUT_TOKENS)
    count = len(tokens)
    r2 = []
    with progress_bar(title="fitting KANs to MLPs", total=len(teacher.blocks) * steps) as bar:
        for theirs, ours in zip(teacher.blocks, student.blocks, strict=True):
            assert isinstance(theirs, Block)
            assert isinstance(ours, Block)
            assert isinstance(ours.mlp, KANFeedForward)
            x, y = _advance(theirs, tokens)
            _fit(ours.mlp, x, y, steps, bar)
            r2.append(_r_squared(ours.mlp, *_advance(theirs, held_out_tokens)))
            bar.set_postfix(r2=f"{r2[-1]:.3f}")
    for module, training in zip((teacher, student), states, strict=True):
        module.train(training)
    return Distillation(tuple(r2), count)


@torch.no_grad()
def _embed(model: VisionTransformer, pictures: Iterable[Tensor], count: int) -> Tensor:
    """The first block's input (pictures, tokens, D), `count` tokens or a batch more."""
    device = model.pos_embed.device
    batches: list[Tensor] = []
    for batch in pictures:
        batches.append(model.embed(batch.to(device)).cpu())
        if sum(len(tokens) for tokens in batches) * batches[0].shape[1] >= count:
            break
    return torch.cat(batches)


@torch.no_grad()
def _advance(block: Block, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of a block's MLP, (N, D) each; replaces `tokens` by the block's output."""
    device = block.norm1.weight.device
    inputs, outputs = [], []
    for part in tokens.split(64):
        x = part.to(device)
        x = x + block.ls1(block.attn(block.norm1(x)))
        inputs.append(block.norm2(x))
        outputs.append(block.mlp(inputs[-1]))
        part.copy_(x + block.ls2(outputs[-1]))
    return torch.cat(inputs).flatten(0, 1), torch.cat(outputs).flatten(0, 1)


def _fit(kan: KANFeedForward, x: Tensor, y: Tensor, steps: int, bar: Any) -> None:
    """Least squares by Adam, on a uniform grid over the inputs."""
    calibrate_grid(kan.fc1, x[:: max(len(x) // 2**14, 1)], coverage=0.999)
    spread = y.var(dim=0).mean().sqrt().clamp_min(1e-6)  # a block may do nothing
    optimizer = torch.optim.Adam(kan.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for rows in _batches(len(x), steps):
        loss = F.mse_loss(kan(x[rows]) / spread, y[rows] / spread)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(kan.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.update()


def _batches(count: int, steps: int) -> Iterator[Tensor]:
    """The rows of each step, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield torch.randint(count, (ROWS,), generator=generator)


@torch.no_grad()
def _r_squared(kan: KANFeedForward, x: Tensor, y: Tensor) -> float:
    """R² over all outputs together."""
    error = torch.cat([kan(part) for part in x.split(2**14)]) - y
    variance = (y - y.mean(dim=0)).square().sum().clamp_min(1e-12)
    return 1 - float(error.square().sum() / variance)
