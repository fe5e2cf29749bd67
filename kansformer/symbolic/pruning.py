"""Cutting a network down and refining it; every function returns a new network."""

import copy
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from kansformer.symbolic.activations import trace, training_samples
from kansformer.symbolic.attribution import attribute
from kansformer.symbolic.dataset import Dataset
from kansformer.symbolic.symbolic_layer import SymbolicKAN, SymbolicLayer
from models import kan_grid
from models.kan import KANLinear
from models.plain import plain

Data = Dataset | Tensor | None


def prune(
    model: nn.Module,
    data: Data = None,
    node_threshold: float = 1e-2,
    edge_threshold: float = 3e-2,
) -> SymbolicKAN:
    """Removes hidden nodes and then cuts edges whose scores are low.

    What is cut leaves its mean behind as a bias. Nodes that nothing enters or leaves any more go
    too; inputs stay, see `prune_input`.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        data: for the scores, see `attribute`; nothing but training inputs is looked at.
        node_threshold, edge_threshold: scores, of outputs that have 1.
    """
    return prune_edge(prune_node(model, data, node_threshold), data, edge_threshold)


def prune_node(
    model: nn.Module,
    data: Data = None,
    threshold: float = 1e-2,
    keep: Sequence[Collection[int]] | None = None,
) -> SymbolicKAN:
    """Removes hidden nodes whose score is at most `threshold`; each layer keeps its best one.

    Args:
        model, data: as in `prune`.
        keep: for each hidden layer the nodes to keep, in the place of the threshold.

    Raises:
        ValueError: `keep` has another number of layers, no node for one, or unknown nodes.
    """
    own = SymbolicKAN.of(model)
    hidden = len(own.layers) - 1
    if keep is None:
        scores = attribute(own, data).nodes[1:-1]
        keep = [
            (score > threshold).nonzero()[:, 0].tolist() or [int(score.argmax())]
            for score in scores
        ]
    if len(keep) != hidden:
        raise ValueError(f"keep must name nodes for each of {hidden} hidden layers")
    x = training_samples(own, data)
    for number, nodes in enumerate(keep):
        count = own.layers[number].nodes
        wanted = sorted(set(plain(list(nodes))))
        if not wanted or wanted[0] < 0 or wanted[-1] >= count:
            raise ValueError(f"hidden layer {number + 1} has nodes 0 to {count - 1}, not {wanted}")
        if len(wanted) < count:
            following = own.layers[number + 1]
            gone = torch.ones_like(following.mask)
            gone[:, wanted] = False
            cut_edges(own, number + 1, gone, x)
            _keep_nodes(own, number, wanted)
    return own


def prune_edge(
    model: nn.Module,
    data: Data = None,
    threshold: float = 3e-2,
    cut: Collection[tuple[int, int, int]] | None = None,
) -> SymbolicKAN:
    """Cuts edges whose score is at most `threshold`.

    Args:
        model, data: as in `prune`.
        cut: edges (layer, source, target) to cut, in the place of the threshold.

    Raises:
        ValueError: no such edge.
    """
    own = SymbolicKAN.of(model)
    if cut is None:
        gone = [score <= threshold for score in attribute(own, data).edges]
    else:
        gone = [torch.zeros_like(layer.mask) for layer in own.layers]
        for layer, source, target in cut:
            check_edge(own, layer, source, target)
            gone[layer][target, source] = True
    x = training_samples(own, data)
    for number, edges in enumerate(gone):
        cut_edges(own, number, edges, x)
    return _without_loose_ends(own, x)


def prune_input(
    model: nn.Module,
    data: Data = None,
    threshold: float = 1e-2,
    keep: Collection[int] | None = None,
) -> SymbolicKAN:
    """Ignores inputs whose score is at most `threshold`; the network still takes all of them.

    Args:
        model, data: as in `prune`.
        keep: numbers of the inputs to keep, in the place of the threshold.

    Raises:
        ValueError: `keep` names none, or inputs that are not in use.
    """
    own = SymbolicKAN.of(model)
    used = own.inputs.tolist()
    if keep is None:
        score = attribute(own, data).nodes[0]
        columns = (score > threshold).nonzero()[:, 0].tolist() or [int(score.argmax())]
    else:
        keep = set(plain(list(keep)))
        if not keep or not keep <= set(used):
            raise ValueError(f"the inputs in use are {used}, not {sorted(keep)}")
        columns = [column for column, number in enumerate(used) if number in keep]
    first = own.layers[0]
    gone = torch.ones_like(first.mask)
    gone[:, columns] = False
    cut_edges(own, 0, gone, training_samples(own, data))
    own.layers[0] = _part(first, list(range(first.out_features)), columns, first.products)
    own.inputs = own.inputs[columns]
    return own


def refine(model: nn.Module, grid: int) -> SymbolicKAN:
    """Divides every layer's grid into `grid` intervals; the functions stay exactly as they are.

    Old knots stay where they are and the new intervals are spread over the old ones, so that some
    may have one more than others; a fit that moves the grids evens them out.

    Raises:
        ValueError: fewer intervals than some layer has.
    """
    own, grid = SymbolicKAN.of(model), plain(grid)
    for layer in own.layers:
        kan = layer.kan
        if grid < kan.grid_size:
            raise ValueError(f"a grid of {grid} is coarser than the present {kan.grid_size}")
        kan_grid.change_grid(kan, _divided(kan.grid, kan.spline_order, grid))
    return own


def check_edge(model: SymbolicKAN, layer: int, source: int, target: int) -> SymbolicLayer:
    """The layer of an edge, or a ValueError that says what there is."""
    if not 0 <= layer < len(model.layers):
        raise ValueError(f"the layers are 0 to {len(model.layers) - 1}, not {layer}")
    own = model.layers[layer]
    if not (0 <= source < own.in_features and 0 <= target < own.out_features):
        raise ValueError(
            f"the edges of layer {layer} lead from 0 to {own.in_features - 1} to 0 to"
            f" {own.out_features - 1}, not from {source} to {target}"
        )
    return own


def _divided(knots: Tensor, order: int, grid: int) -> Tensor:
    """Knots (in, M) with more in between, (in, grid + 2·order + 1)."""
    last = knots.shape[1] - order - 1
    old = last - order
    cuts = [grid * (j + 1) // old - grid * j // old for j in range(old)]
    parts = [knots[:, :order]]
    for j, count in enumerate(cuts):
        left, right = knots[:, order + j, None], knots[:, order + j + 1, None]
        shares = torch.arange(count, dtype=knots.dtype, device=knots.device) / count
        parts.append(left + (right - left) * shares)
    return torch.cat([*parts, knots[:, last:]], dim=1)


@torch.no_grad()
def cut_edges(model: SymbolicKAN, number: int, edges: Tensor, x: Tensor) -> None:
    """Masks edges (out, in) of a layer in place; their mean on the samples goes into the bias."""
    layer = model.layers[number]
    edges = edges & layer.mask
    if not edges.any():
        return
    _, layers = trace(model, x)
    part = layers[number]
    mean = layer.bias.new_zeros(layer.mask.shape)
    if part.features is not None:
        mean = torch.einsum("im,oim->oi", part.features.mean(dim=0), layer.weight())
    for name, (o, i) in layer.formulas().items():
        mean = mean.index_put((o, i), layer.apply_function(name, part.x, o, i).mean(dim=0))
    layer.bias += (mean * edges).sum(dim=1)
    layer.mask &= ~edges


def _without_loose_ends(model: SymbolicKAN, x: Tensor) -> SymbolicKAN:
    """Removes hidden nodes that nothing enters, as the constants they are, or that nothing leaves.

    One node stays in every layer, cut off if need be.
    """
    changed = True
    while changed:
        changed = False
        for number in range(len(model.layers) - 1):
            layer, following = model.layers[number], model.layers[number + 1]
            plain = layer.nodes - layer.products
            entered = layer.mask.any(dim=1)
            pairs = entered[plain:].view(-1, 2).any(dim=1)
            entered = torch.cat([entered[:plain], pairs])
            left = following.mask.any(dim=0)
            if (left & ~entered).any():
                cut_edges(model, number + 1, (~entered).expand_as(following.mask), x)
                changed = True
            useful = (entered & left).nonzero()[:, 0].tolist() or [0]
            if len(useful) < layer.nodes:
                _keep_nodes(model, number, useful)
                changed = True
    return model


def _keep_nodes(model: SymbolicKAN, number: int, nodes: list[int]) -> None:
    """Leaves only some nodes of a layer, whose edges onwards are those that are not cut."""
    layer, following = model.layers[number], model.layers[number + 1]
    plain = layer.nodes - layer.products
    rows = [node for node in nodes if node < plain]
    products = [node for node in nodes if node >= plain]
    rows += [plain + 2 * (node - plain) + k for node in products for k in (0, 1)]
    model.layers[number] = _part(layer, rows, list(range(layer.in_features)), len(products))
    every = list(range(following.out_features))
    model.layers[number + 1] = _part(following, every, nodes, following.products)


def _part(
    layer: SymbolicLayer, rows: list[int], columns: list[int], products: int
) -> SymbolicLayer:
    """Some sums and inputs of a layer."""
    own = copy.copy(layer)
    own._parameters, own._buffers = dict(layer._parameters), dict(layer._buffers)
    own._modules = dict(layer._modules)
    own.kan = _part_of_kan(layer.kan, rows, columns)
    own.products = products
    own.affine = nn.Parameter(layer.affine.detach()[rows][:, columns].clone())
    own.fixed = layer.fixed[rows][:, columns].clone()
    own.mask, own.bias = layer.mask[rows][:, columns].clone(), layer.bias[rows].clone()
    own.names = [[layer.names[o][i] for i in columns] for o in rows]
    return own


def _part_of_kan(kan: KANLinear, rows: list[int], columns: list[int]) -> KANLinear:
    kan = copy.deepcopy(kan)
    kan.in_features, kan.out_features = len(columns), len(rows)
    kan.grid = kan.grid[columns]
    for name in ("base_weight", "spline_weight"):
        weight = getattr(kan, name).detach()[rows][:, columns]
        setattr(kan, name, nn.Parameter(weight.clone()))
    return kan
