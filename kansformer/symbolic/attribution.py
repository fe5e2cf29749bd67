"""How much every edge, node and input matters for the outputs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kansformer.symbolic.activations import LayerTrace, trace, training_samples
from kansformer.symbolic.dataset import Dataset
from kansformer.symbolic.symbolic_layer import SymbolicKAN

SMALL = 1e-4  # a node that varies less than this passes little of its score on


@dataclass(frozen=True)
class Scores:
    """Scores of what leads to the outputs, each of which has a score of 1.

    Attributes:
        edges: one (out, in) per layer.
        nodes: (nodes,) of the inputs in use and of every layer, the outputs last.
    """

    edges: list[Tensor]
    nodes: list[Tensor]


def attribute(model: nn.Module, data: Dataset | Tensor | None = None) -> Scores:
    """Scores of all edges and nodes, from the outputs back to the inputs.

    An edge takes its node's score times the standard deviation of its output over that of the
    node's sum; a node collects the scores of the edges that leave it (Liu et al., 2024b, KAN 2.0,
    section 5.1). With several outputs the largest score counts.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        data: a dataset, of which only the training inputs are looked at, or samples (N, inputs);
            without them, places spread evenly over the first layer's grids.
    """
    own = SymbolicKAN.of(model)
    with torch.no_grad():
        _, layers = trace(own, training_samples(own, data))
        unit = torch.eye(layers[-1].layer.nodes).to(layers[-1].sums)
        every = [_scores(layers, row) for row in unit]
    edges = [torch.stack([s.edges[k] for s in every]).amax(dim=0) for k in range(len(layers))]
    nodes = [torch.stack([s.nodes[k] for s in every]).amax(dim=0) for k in range(len(layers) + 1)]
    return Scores(edges, nodes)


def _scores(layers: list[LayerTrace], score: Tensor) -> Scores:
    edges: list[Tensor] = []
    nodes = [score]
    for part in reversed(layers):
        layer = part.layer
        plain = layer.nodes - layer.products
        of_sums = torch.cat([score[:plain], score[plain:].repeat_interleave(2)])
        spread = part.sums.std(dim=0, correction=0) if len(part.sums) else part.sums.new_zeros(0)
        edge = part.deviations() * (of_sums / (spread + SMALL))[:, None]
        score = edge.sum(dim=0)
        edges.insert(0, edge)
        nodes.insert(0, score)
    return Scores(edges, nodes)


def feature_score(model: nn.Module, data: Dataset | Tensor | None = None) -> Tensor:
    """Score of every input, (inputs,), 0 for those that were pruned; see `attribute`."""
    own = SymbolicKAN.of(model)
    found = attribute(own, data).nodes[0]
    return found.new_zeros(len(own.names)).index_put((own.inputs,), found)
