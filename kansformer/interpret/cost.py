"""The cost of a model's feed-forward blocks: parameters, FLOPs and time."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.twins import count_parameters
from models.vit_model import VisionTransformer

ROWS = 4096  # tokens per measurement
ROUNDS = 15


@dataclass(frozen=True)
class Cost:
    """The cost of all feed-forward blocks together.

    Attributes:
        parameters: number of parameters.
        flops: FLOPs of the matrix products for one token, two per multiply-add.
    """

    parameters: int
    flops: int


def ffn_blocks(model: VisionTransformer) -> list[nn.Module]:
    """The feed-forward block of every transformer block."""
    return [model.get_submodule(f"blocks.{block}.mlp") for block in range(model.config.depth)]


def ffn_cost(model: VisionTransformer) -> Cost:
    """Parameters and FLOPs of a model's feed-forward blocks."""
    blocks = ffn_blocks(model)
    tokens = model.pos_embed.new_zeros(ROWS, model.config.embed_dim)  # many, as in a batch
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for block in blocks:
            block(tokens)
    return Cost(sum(map(count_parameters, blocks)), counter.get_total_flops() // ROWS)


def ffn_speedup(before: VisionTransformer, after: VisionTransformer, rounds: int = ROUNDS) -> float:
    """How many times faster the feed-forward blocks of `after` are than those of `before`.

    Measures processor time on one thread, in inference. Each round runs both models in turn, so
    that other load on the machine affects both; the result is the median over the rounds. Both
    models must be on the CPU. The number of torch's threads is restored.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, before.config.embed_dim, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        jobs = [partial(_forward, ffn_blocks(model), x) for model in (before, after)]
        return _ratio(jobs, rounds)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _forward(blocks: list[nn.Module], x: Tensor) -> None:
    for block in blocks:
        block(x)


def _ratio(jobs: Sequence[Callable[[], None]], rounds: int) -> float:
    """Median over the rounds of the first job's time over the second's."""
    ratios = []
    for number in range(-2, rounds):
        seconds = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            jobs[which]()
            seconds[which] = time.process_time() - start
        if number >= 0:
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
