"""Which learned functions of the last block decided on one picture.

What counts is the lead: by how much the log-odds of the likeliest class exceed those of the second.
A hidden unit of the last feed-forward block sends its value through learned functions into the
channels that the head reads. Here everything else stays as it is in the picture, and the unit's
functions are left out, or given other values: an exact answer of the model, without a data set and
whatever head it has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kansformer.checkpoint import TrainedModel
from kansformer.interpret.block_activations import block_records, tokens_that_matter
from kansformer.interpret.edges import EdgeLayer, edge_layer, edge_terms, grid_range

POINTS = 101  # of a curve
UNITS_AT_ONCE = 32


@dataclass(frozen=True)
class UnitVote:
    """What the functions of one hidden unit do to the lead.

    Attributes:
        unit: its number.
        gain: what the lead would lose if the unit's functions were left out.
        x: (POINTS,) values of the unit, over its grid and what it had in the picture.
        gains: (POINTS,) the gain with each of these values, in all tokens that the head reads.
        base_gains: (POINTS,) the same of the functions' bases alone, without their splines.
        values: (T,) what the unit had in the picture, in each of these tokens.
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
    """What the learned functions of the last block do to the lead in one picture.

    Attributes:
        winner, rival: index of the likeliest and of the second class.
        lead: the winner's log-odds against the rival; the logarithm of their probabilities' ratio.
        gain: what the lead would lose if all these functions were left out.
        votes: those of the strongest units, the largest gain or loss first.
    """

    winner: int
    rival: int
    lead: float
    gain: float
    votes: list[UnitVote]


def has_functions(model: TrainedModel) -> bool:
    """Whether there is something to explain: learned functions, and two classes."""
    return model.config.ffn != "mlp" and model.config.num_classes > 1


@torch.no_grad()
def explain_decision(model: TrainedModel, picture: Tensor, count: int = 6) -> Decision:
    """Explains the decision on one picture by the last block's learned functions.

    Args:
        model: in eval mode.
        picture: (C, S, S) preprocessed.
        count: hidden units to show.

    Raises:
        ValueError: the model has no learned functions, or one class only.
    """
    if not has_functions(model):
        raise ValueError("an MLP's edges are straight lines, and one class has no rival")
    last = len(model.blocks) - 1
    layer = edge_layer(model, last, "fc2")
    scale = model.get_submodule(f"blocks.{last}.ls2")
    streams: list[Tensor] = []  # what leaves the last block, (1, N, D)
    hook = model.blocks.register_forward_hook(lambda *seen: streams.append(seen[-1]))
    try:
        record = block_records(model, picture[None])[last]
    finally:
        hook.remove()
    # with mean pooling the head skips tokens in front by itself, so they stay
    read = tokens_that_matter(model.config, last)
    kept = read if model.config.pool == "token" else slice(None)
    stream, hidden = streams[0][0, kept], record.hidden[0, kept]  # (T, D), (T, hidden)

    logits = _logits(model, stream[None])[0]
    winner, rival = logits.topk(2).indices.tolist()

    def lead(tokens: Tensor) -> Tensor:
        """(B, T, D) of what leaves the last block -> (B,)."""
        given = _logits(model, tokens)
        return given[:, winner] - given[:, rival]

    whole = lead(stream[None])
    features, weights = edge_terms(layer, hidden)  # (T, hidden, n), (D, hidden, n)
    gains = []
    for start in range(0, hidden.shape[1], UNITS_AT_ONCE):
        some = slice(start, start + UNITS_AT_ONCE)
        parts = torch.einsum("tin,oin->ito", features[:, some], weights[:, some])
        gains.append(whole - lead(stream - scale(parts)))
    gain = torch.cat(gains)  # (hidden,)

    votes = []
    for unit in gain.abs().argsort(descending=True)[:count].tolist():
        values = record.hidden[0, read, unit]
        x, terms = _places(layer, unit, values)
        own = features[:, unit] @ weights[:, unit].T  # (T, D)
        rest = stream - scale(own)
        without = lead(rest[None])

        def along(n: int, rest: Tensor = rest, terms: Tensor = terms, unit: int = unit) -> Tensor:
            """The lead with the first n features of the unit's functions alone."""
            given = terms[:, :n] @ weights[:, unit, :n].T  # (POINTS, D)
            return lead(rest + scale(given)[:, None])

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
    total = whole - lead((stream - scale(all_parts))[None])
    return Decision(winner, rival, float(whole), float(total), votes)


def _logits(model: TrainedModel, tokens: Tensor) -> Tensor:
    """Log-odds of the classes, (B, T, D) -> (B, classes), but for a constant."""
    return model.forward_head(model.norm(tokens)) / model.temperature


def _places(layer: EdgeLayer, unit: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Values over the grid and the given ones, (POINTS,), and the unit's features there."""
    low, high = _grid(layer, unit)
    x = torch.linspace(
        min(low, float(values.min())), max(high, float(values.max())), POINTS, device=values.device
    )
    inputs = x.new_zeros(POINTS, layer.in_features)
    inputs[:, unit] = x
    return x, edge_terms(layer, inputs)[0][:, unit]


def _grid(layer: EdgeLayer, unit: int) -> tuple[float, float]:
    ends = grid_range(layer, unit)
    assert ends is not None  # as there are splines
    return ends
