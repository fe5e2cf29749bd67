"""Importance scores of the edges and hidden units of a feed-forward block, on real pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.interpret.block_activations import BlockRecord
from kansformer.interpret.edges import edge_deviations, edge_layer, outside_grid, split_output
from models.vit_model import VisionTransformer

SMALL = 1e-12


@dataclass(frozen=True)
class LayerFacts:
    """How much a layer uses its splines.

    Attributes:
        outside: fraction of its inputs outside the grid; None for an MLP's layer.
        spline_energy: variance of the splines' part of the output, as a fraction of the sum of the
            variances of both parts, splines and bases; in [0, 1].
    """

    outside: float | None
    spline_energy: float


def layer_facts(model: VisionTransformer, block: int, layer: str, x: Tensor) -> LayerFacts:
    """Facts about a layer on its recorded inputs x (N, in).

    The variance of a part is taken over the samples and summed over the outputs, so that constant
    contributions do not count.
    """
    edges = edge_layer(model, block, layer)
    base, spline = (part.var(dim=0).sum() for part in split_output(edges, x))
    return LayerFacts(outside_grid(edges, x), float(spline / (base + spline + SMALL)))


@dataclass(frozen=True)
class BlockScores:
    """Importance scores for the output of a block.

    Attributes:
        units: (hidden,) of the hidden units.
        first: (hidden, D) of the first layer's edges.
        second: (D, hidden) of the second layer's edges.
    """

    units: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def score_block(model: VisionTransformer, block: int, record: BlockRecord) -> BlockScores:
    """Scores of a block's hidden units and edges on recorded tokens.

    - An edge of the second layer: the standard deviation of its output, std(φ_oi).
    - A hidden unit: √(Σ_o std(φ_oi)²). Its square is the mean squared error of the block's output
      if the unit's contributions were replaced by their means.
    - An edge of the first layer: the score of its unit, times std(φ_oi) over the standard deviation
      of the unit's sum, as in KAN 2.0 (Liu et al., 2024b, section 5.1).
    """
    fc1, fc2 = (edge_layer(model, block, name) for name in ("fc1", "fc2"))
    second = edge_deviations(fc2, record.hidden)
    units = second.square().sum(dim=0).sqrt()
    spread = fc1(record.inputs).std(dim=0)
    first = edge_deviations(fc1, record.inputs) * (units / spread.clamp_min(SMALL))[:, None]
    return BlockScores(units, first, second)


def strongest(scores: Tensor, count: int, apart: bool = False) -> list[tuple[int, int]]:
    """The edges (output, input) with the highest scores, best first.

    Args:
        scores: (out, in).
        count: maximum number of edges.
        apart: whether to list at most one edge per output and per input, so that a single unit does
            not fill the list.
    """
    left = scores.clone()
    edges: list[tuple[int, int]] = []
    for _ in range(min(count, min(scores.shape) if apart else scores.numel())):
        target, source = divmod(int(left.argmax()), scores.shape[1])
        edges.append((target, source))
        left[target, source] = -torch.inf
        if apart:
            left[target] = -torch.inf
            left[:, source] = -torch.inf
    return edges
