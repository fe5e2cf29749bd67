"""Which edges and hidden units of a feed-forward block matter, by what they do on real pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.interpret.block_activations import BlockRecord
from kansformer.interpret.edges import edge_deviations, edge_layer, outside_grid, split_output
from models.vit_model import VisionTransformer

SMALL = 1e-12


@dataclass(frozen=True)
class LayerFacts:
    """What a layer's splines do.

    Attributes:
        outside: share of its inputs outside the grid; None for an MLP's layer.
        spline_energy: share of the splines in the variance of the output's two parts, in [0, 1].
    """

    outside: float | None
    spline_energy: float


def layer_facts(model: VisionTransformer, block: int, layer: str, x: Tensor) -> LayerFacts:
    """Where the recorded inputs (N, in) of a layer lie, and how much its splines add.

    The energy of a part is its variance over the samples, summed over the outputs; the constant
    that a part adds tells nothing.
    """
    own = edge_layer(model, block, layer)
    base, spline = (part.var(dim=0).sum() for part in split_output(own, x))
    return LayerFacts(outside_grid(own, x), float(spline / (base + spline + SMALL)))


@dataclass(frozen=True)
class BlockScores:
    """How much the parts of a block matter for its output.

    Attributes:
        units: (hidden,) of the hidden units.
        first: (hidden, D) of the edges into them.
        second: (D, hidden) of the edges out of them.
    """

    units: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def score_block(model: VisionTransformer, block: int, record: BlockRecord) -> BlockScores:
    """Scores of a block's hidden units and edges over the recorded tokens.

    - An edge of the second layer: the standard deviation of its output, std(φ_oi).
    - A hidden unit: √(Σ_o std(φ_oi)²). Its square is the mean squared error of the block's output
      if the unit were replaced by its mean.
    - An edge of the first layer: the score of its unit, times std(φ_oi) over the standard deviation
      of the unit's sum: so scores are passed back in KAN 2.0 (Liu et al., 2024b, section 5.1).
    """
    fc1, fc2 = (edge_layer(model, block, name) for name in ("fc1", "fc2"))
    second = edge_deviations(fc2, record.hidden)
    units = second.square().sum(dim=0).sqrt()
    spread = fc1(record.inputs).std(dim=0)
    first = edge_deviations(fc1, record.inputs) * (units / spread.clamp_min(SMALL))[:, None]
    return BlockScores(units, first, second)


def strongest(scores: Tensor, count: int, apart: bool = False) -> list[tuple[int, int]]:
    """The edges (output, input) of the highest scores, best first.

    Args:
        scores: (out, in).
        apart: no two with the same output or input, so that one unit does not fill the list.
    """
    left = scores.clone()
    found: list[tuple[int, int]] = []
    for _ in range(min(count, min(scores.shape) if apart else scores.numel())):
        target, source = divmod(int(left.argmax()), scores.shape[1])
        found.append((target, source))
        left[target, source] = -torch.inf
        if apart:
            left[target] = -torch.inf
            left[:, source] = -torch.inf
    return found
