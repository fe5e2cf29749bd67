"""How the learned functions of the last block contributed to the decision on one picture.

The decision is measured by the lead: the log-odds of the most likely class against the second. A
hidden unit of the last feed-forward block passes its value through learned functions into the
channels that the head reads. The unit's functions are removed, or evaluated at other values, while
everything else stays as in the picture. The result is exact, needs no data set, and holds for any
head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.checkpoint import TrainedModel
from kansformer.interpret.block_activations import block_records, tokens_that_matter
from kansformer.interpret.edges import EdgeLayer, edge_layer, edge_terms, grid_range

POINTS = 101  # per curve
UNITS_AT_ONCE = 32


@dataclass(frozen=True)
class UnitVote:
    """How the functions of one hidden unit change the lead.

    Attributes:
        unit: its index.
        gain: the loss of lead if the unit's functions were removed.
        x: (POINTS,) values of the unit, over its grid and its values in the picture.
        gains: (POINTS,) the gain if the unit had this value in all tokens that the head reads.
        base_gains: (POINTS,) the same with the base functions alone, without splines.
        values: (T,) the unit's values in the picture, in the tokens that the head reads.
        grid: both ends of its splines' grid.
    """

    unit: int
    gain: float
    x: Tensor
    gains: Tensor
    base_gains: Tensor
    values: Tensor
    grid: tuple[float, float]


@dataclass(frozen=True)
class Decision:
    """How the learned functions of the last block change the lead in one picture.

    Attributes:
        winner, rival: index of the most likely and of the second class.
        lead: log-odds of the winner against the rival, the logarithm of the ratio of their
            probabilities.
        gain: the loss of lead if all these functions were removed.
        votes: the votes of the strongest units, the largest absolute gain first.
    """

    winner: int
    rival: int
    lead: float
    gain: float
    votes: list[UnitVote]


def has_functions(model: TrainedModel) -> bool:
    """Whether a decision can be explained: the model has learned functions and two classes."""
    return model.config.ffn != "mlp" and model.config.num_classes > 1


@torch.no_grad()
def explain_decision(model: TrainedModel, picture: Tensor, count: int = 6) -> Decision:
    """Explains the decision on one picture by the last block's learned functions.

    Args:
        model: in eval mode.
        picture: (C, S, S) preprocessed.
        count: number of hidden units in the result.

    Raises:
        ValueError: the model has no learned functions, or only one class.
    """
    if not has_functions(model):
        raise ValueError("only models with KAN blocks and at least two classes can be explained")
    last = len(model.blocks) - 1
    layer = edge_layer(model, last, "fc2")
    scale = model.get_submodule(f"blocks.{last}.ls2")
    streams: list[Tensor] = []  # output of the last block, (1, N, D)
    hook = model.blocks.register_forward_hook(lambda *args: streams.append(args[-1]))
    try:
        record = block_records(model, picture[None])[last]
    finally:
        hook.remove()
    # except for a class token, the head itself drops the tokens that it does not read
    read = tokens_that_matter(model.config, last)
    kept = read if model.config.pool == "token" else slice(None)
    stream, hidden = streams[0][0, kept], record.hidden[0, kept]  # (T, D), (T, hidden)

    logits = _logits(model, stream[None])[0]
    winner, rival = logits.topk(2).indices.tolist()

    def lead(tokens: Tensor) -> Tensor:
        """Outputs of the last block (B, T, D) -> lead (B,)."""
        logits = _logits(model, tokens)
        return logits[:, winner] - logits[:, rival]

    actual = lead(stream[None])
    features, weights = edge_terms(layer, hidden)  # (T, hidden, n), (D, hidden, n)
    gains = []
    for start in range(0, hidden.shape[1], UNITS_AT_ONCE):
        units = slice(start, start + UNITS_AT_ONCE)
        parts = torch.einsum("tin,oin->ito", features[:, units], weights[:, units])
        gains.append(actual - lead(stream - scale(parts)))
    gain = torch.cat(gains)  # (hidden,)

    votes = []
    for unit in gain.abs().argsort(descending=True)[:count].tolist():
        values = record.hidden[0, read, unit]
        x, terms = _curve_terms(layer, unit, values)
        part = features[:, unit] @ weights[:, unit].T  # (T, D)
        rest = stream - scale(part)
        without = lead(rest[None])

        def along(n: int, rest: Tensor = rest, terms: Tensor = terms, unit: int = unit) -> Tensor:
            """The lead along the curve, with only the first n features of the unit's functions."""
            part = terms[:, :n] @ weights[:, unit, :n].T  # (POINTS, D)
            return lead(rest + scale(part)[:, None])

        votes.append(
            UnitVote(
                unit,
                float(gain[unit]),
                x.cpu(),
                (along(terms.shape[1]) - without).cpu(),
                (along(1) - without).cpu(),
                values.cpu(),
                _grid(layer, unit),
            )
        )
    all_parts = torch.einsum("tin,oin->to", features, weights)
    total = actual - lead((stream - scale(all_parts))[None])
    return Decision(winner, rival, float(actual), float(total), votes)


def _logits(model: TrainedModel, tokens: Tensor) -> Tensor:
    """Log-odds of the classes up to a constant, (B, T, D) -> (B, classes)."""
    return model.forward_head(model.norm(tokens)) / model.temperature


def _curve_terms(layer: EdgeLayer, unit: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Points (POINTS,) over the grid and `values`, and the unit's features there (POINTS, n)."""
    low, high = _grid(layer, unit)
    x = torch.linspace(
        min(low, float(values.min())), max(high, float(values.max())), POINTS, device=values.device
    )
    inputs = x.new_zeros(POINTS, layer.in_features)
    inputs[:, unit] = x
    return x, edge_terms(layer, inputs)[0][:, unit]


def _grid(layer: EdgeLayer, unit: int) -> tuple[float, float]:
    ends = grid_range(layer, unit)
    assert ends is not None  # the layer has splines
    return ends
