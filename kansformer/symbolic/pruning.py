"""Pruning a network: removing edges, hidden nodes and inputs. All functions return a copy."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from kansformer.symbolic.activations import run_layers
from kansformer.symbolic.attribution import attribute
from kansformer.symbolic.dataset import Dataset, training_samples
from kansformer.symbolic.symbolic_kan import SymbolicKAN
from models.plain import plain

Data = Dataset | Tensor | None


def prune(
    model: nn.Module,
    data: Data = None,
    node_threshold: float = 1e-2,
    edge_threshold: float = 3e-2,
) -> SymbolicKAN:
    """Removes hidden nodes, and then edges, that have a low attribution score.

    The mean of what is removed is added to the bias. Hidden nodes that are left without incoming or
    outgoing edges are removed too. Inputs are kept, see `prune_input`.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        data: for the scores, see `attribute`; of a dataset only the training inputs are used.
        node_threshold, edge_threshold: scores up to which nodes and edges are removed; an output
            has a score of 1.
    """
    return prune_edge(prune_node(model, data, node_threshold), data, edge_threshold)


def prune_node(
    model: nn.Module,
    data: Data = None,
    threshold: float = 1e-2,
    keep: Sequence[Collection[int]] | None = None,
) -> SymbolicKAN:
    """Removes hidden nodes whose score is at most `threshold`; each layer keeps its best node.

    Args:
        model, data: as in `prune`.
        keep: the nodes to keep in each hidden layer, instead of a threshold.

    Raises:
        ValueError: `keep` has a wrong number of layers, an empty layer, or unknown nodes.
    """
    network = SymbolicKAN.of(model)
    hidden = len(network.layers) - 1
    if keep is None:
        scores = attribute(network, data).nodes[1:-1]
        keep = [
            (score > threshold).nonzero()[:, 0].tolist() or [int(score.argmax())]
            for score in scores
        ]
    if len(keep) != hidden:
        raise ValueError(f"keep must name nodes for each of {hidden} hidden layers")
    x = training_samples(network, data)
    for number, nodes in enumerate(keep):
        count = network.layers[number].nodes
        wanted = sorted(set(plain(list(nodes))))
        if not wanted or wanted[0] < 0 or wanted[-1] >= count:
            raise ValueError(f"hidden layer {number + 1} has nodes 0 to {count - 1}, not {wanted}")
        if len(wanted) < count:
            following = network.layers[number + 1]
            gone = torch.ones_like(following.mask)
            gone[:, wanted] = False
            _cut_edges(network, number + 1, gone, x)
            _keep_nodes(network, number, wanted)
    return network


def prune_edge(
    model: nn.Module,
    data: Data = None,
    threshold: float = 3e-2,
    cut: Collection[tuple[int, int, int]] | None = None,
) -> SymbolicKAN:
    """Removes edges whose score is at most `threshold`.

    Args:
        model, data: as in `prune`.
        cut: the edges (layer, source, target) to remove, instead of a threshold.

    Raises:
        ValueError: no such edge.
    """
    network = SymbolicKAN.of(model)
    if cut is None:
        gone = [score <= threshold for score in attribute(network, data).edges]
    else:
        gone = [torch.zeros_like(layer.mask) for layer in network.layers]
        for layer, source, target in cut:
            network.layer_of_edge(layer, source, target)
            gone[layer][target, source] = True
    x = training_samples(network, data)
    for number, edges in enumerate(gone):
        _cut_edges(network, number, edges, x)
    return _remove_unused_nodes(network, x)


def prune_input(
    model: nn.Module,
    data: Data = None,
    threshold: float = 1e-2,
    keep: Collection[int] | None = None,
) -> SymbolicKAN:
    """Removes inputs whose score is at most `threshold`; x keeps its columns, which are ignored.

    Args:
        model, data: as in `prune`.
        keep: the inputs to keep, by number, instead of a threshold.

    Raises:
        ValueError: `keep` is empty, or has inputs that are not in use.
    """
    network = SymbolicKAN.of(model)
    used = network.inputs.tolist()
    if keep is None:
        score = attribute(network, data).nodes[0]
        columns = (score > threshold).nonzero()[:, 0].tolist() or [int(score.argmax())]
    else:
        keep = set(plain(list(keep)))
        if not keep or not keep <= set(used):
            raise ValueError(f"the inputs in use are {used}, not {sorted(keep)}")
        columns = [column for column, number in enumerate(used) if number in keep]
    first = network.layers[0]
    gone = torch.ones_like(first.mask)
    gone[:, columns] = False
    _cut_edges(network, 0, gone, training_samples(network, data))
    network.layers[0] = first.subset(list(range(first.out_features)), columns, first.products)
    network.inputs = network.inputs[columns]
    return network


@torch.no_grad()
def _cut_edges(model: SymbolicKAN, number: int, edges: Tensor, x: Tensor) -> None:
    """Removes edges of a layer in place; their means over the samples are added to the bias.

    Args:
        number: of the layer.
        edges: (out, in), True for the edges to remove.
        x: samples (N, inputs).
    """
    layer = model.layers[number]
    edges = edges & layer.mask
    if not edges.any():
        return
    _, layers = run_layers(model, x)
    activations = layers[number]
    mean = layer.bias.new_zeros(layer.mask.shape)
    if activations.features is not None:
        mean = torch.einsum("im,oim->oi", activations.features.mean(dim=0), layer.weight())
    for name, (o, i) in layer.formulas().items():
        values = layer.apply_function(name, activations.x, o, i)
        mean = mean.index_put((o, i), values.mean(dim=0))
    layer.bias += (mean * edges).sum(dim=1)
    layer.mask &= ~edges


def _remove_unused_nodes(model: SymbolicKAN, x: Tensor) -> SymbolicKAN:
    """Removes hidden nodes without incoming or outgoing edges, in place.

    A node without incoming edges is a constant, which is added to the biases of the next layer.
    Every layer keeps at least one node, even if it is unused.
    """
    changed = True
    while changed:
        changed = False
        for number in range(len(model.layers) - 1):
            layer, following = model.layers[number], model.layers[number + 1]
            has_input = layer.mask.any(dim=1)
            of_products = has_input[layer.plain_sums :].view(-1, 2).any(dim=1)
            has_input = torch.cat([has_input[: layer.plain_sums], of_products])
            has_output = following.mask.any(dim=0)
            if (has_output & ~has_input).any():
                _cut_edges(model, number + 1, (~has_input).expand_as(following.mask), x)
                changed = True
            useful = (has_input & has_output).nonzero()[:, 0].tolist() or [0]
            if len(useful) < layer.nodes:
                _keep_nodes(model, number, useful)
                changed = True
    return model


def _keep_nodes(model: SymbolicKAN, number: int, nodes: list[int]) -> None:
    """Removes the other nodes of a hidden layer, in place."""
    layer, following = model.layers[number], model.layers[number + 1]
    first = layer.plain_sums
    sums = [node for node in nodes if node < first]
    products = [node for node in nodes if node >= first]
    sums += [first + 2 * (node - first) + k for node in products for k in (0, 1)]
    model.layers[number] = layer.subset(sums, list(range(layer.in_features)), len(products))
    every = list(range(following.out_features))
    model.layers[number + 1] = following.subset(every, nodes, following.products)
