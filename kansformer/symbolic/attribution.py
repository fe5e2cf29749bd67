"""Attribution scores: how much each edge, node and input contributes to the outputs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kansformer.symbolic.activations import LayerActivations, run_layers
from kansformer.symbolic.dataset import Dataset, training_samples
from kansformer.symbolic.symbolic_kan import SymbolicKAN

SMALL = 1e-4  # added to standard deviations; a node that hardly varies passes on little score


@dataclass(frozen=True)
class Scores:
    """Attribution scores. Each output has a score of 1.

    Attributes:
        edges: (out, in) for each layer.
        nodes: (nodes,) for the inputs in use and for each layer, the outputs last.
    """

    edges: list[Tensor]
    nodes: list[Tensor]


def attribute(model: nn.Module, data: Dataset | Tensor | None = None) -> Scores:
    """Computes the scores of all edges and nodes, from the outputs back to the inputs.

    The score of an edge is that of its target node, times the standard deviation of the edge's
    output over that of the node's sum. The score of a node is the sum over the edges that leave it
    (Liu et al., 2024b, KAN 2.0, section 5.1). With several outputs, the maximum over them is taken.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        data: a dataset, of which only the training inputs are used, or samples (N, inputs). Without
            data, points that cover the grids of the first layer.

    Raises:
        ValueError: there are no samples, or some are not finite.
    """
    network = SymbolicKAN.of(model)
    with torch.no_grad():
        _, layers = run_layers(network, training_samples(network, data))
        unit = torch.eye(layers[-1].layer.nodes).to(layers[-1].sums)
        by_output = [_scores(layers, row) for row in unit]
    edges = [torch.stack([s.edges[k] for s in by_output]).amax(dim=0) for k in range(len(layers))]
    nodes = [
        torch.stack([s.nodes[k] for s in by_output]).amax(dim=0) for k in range(len(layers) + 1)
    ]
    return Scores(edges, nodes)


def _scores(layers: list[LayerActivations], score: Tensor) -> Scores:
    """All scores for given scores of the outputs (outputs,)."""
    edges: list[Tensor] = []
    nodes = [score]
    for activations in reversed(layers):
        layer, sums = activations.layer, activations.sums
        plain = layer.plain_sums
        of_sums = torch.cat([score[:plain], score[plain:].repeat_interleave(2)])
        spread = sums.std(dim=0, correction=0) if len(sums) else sums.new_zeros(0)
        edge = activations.deviations() * (of_sums / (spread + SMALL))[:, None]
        score = edge.sum(dim=0)
        edges.insert(0, edge)
        nodes.insert(0, score)
    return Scores(edges, nodes)


def feature_score(model: nn.Module, data: Dataset | Tensor | None = None) -> Tensor:
    """The score of each input, (inputs,); 0 for inputs that were pruned. See `attribute`."""
    network = SymbolicKAN.of(model)
    scores = attribute(network, data).nodes[0]
    return scores.new_zeros(len(network.names)).index_put((network.inputs,), scores)
