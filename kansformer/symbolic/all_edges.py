"""All edges of a network as formulas, as far as the samples can tell which."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kansformer.curve_fitting.candidates import Suggestion, fit_candidates
from kansformer.curve_fitting.function_library import LIBRARY, function_named
from kansformer.symbolic.activations import run_layers
from kansformer.symbolic.attribution import attribute
from kansformer.symbolic.dataset import Dataset, check_samples, training_samples
from kansformer.symbolic.fitting import move_grids, solve
from kansformer.symbolic.formula_trials import (
    EXACT,
    SAME,
    Edge,
    Split,
    Trial,
    simplest_good_trials,
    try_choice,
    try_formulas,
)
from kansformer.symbolic.objective import Objective
from kansformer.symbolic.pruning import prune_edge
from kansformer.symbolic.symbolic_kan import SymbolicKAN

TRIALS = 40
EDGE_STEPS = 20
FINAL_STEPS = 60
WEAK = 1e-2  # attribution score below which an edge is too weak to tell functions apart


@dataclass(frozen=True)
class EdgeReport:
    """What `auto_symbolic` did with an edge, numbered as in the network that it was given.

    Attributes:
        layer, source, target: the edge.
        name: its function, or None if it is still a spline or was removed.
        reason: "fixed", "fixed before", "cut" (removed, the outputs are as good without it), "no
            function fits", "weak" (it matters too little to tell functions apart), or "ambiguous"
            (several functions are equally good).
        suggestions: formulas that fit its curve, best first.
    """

    layer: int
    source: int
    target: int
    name: str | None
    reason: str
    suggestions: tuple[Suggestion, ...] = field(repr=False)

    def __str__(self) -> str:
        edge = f"layer {self.layer}, {self.source} -> {self.target}"
        best = ", ".join(f"{s.name} ({s.loss:.1e})" for s in self.suggestions[:3])
        name = self.name or ("nothing" if self.reason == "cut" else "spline")
        return f"{edge}: {name} ({self.reason}); 1 - R2: {best}"


def auto_symbolic(
    model: nn.Module,
    data: Dataset | Tensor | None = None,
    library: Sequence[str] = LIBRARY,
    r2_threshold: float = 0.9,
    choices: int = 4,
    trials: int = TRIALS,
    partial: bool = True,
    seed: int = 0,
) -> SymbolicKAN:
    """A copy whose edges are functions of the library, where these are as good as the splines.

    First, candidates are fitted to the curves of all edges. Then formulas of the whole network are
    tried, the most plausible first: each is fitted to most of the training samples and evaluated on
    the rest. The first exact formula is taken. If none is exact, edges are fixed one at a time
    while the held-out error does not grow; the remaining edges stay splines, and the `report` of
    the result says why.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        data: a dataset, of which only the training set is used; or samples, for which the outputs
            of the network are the labels, see `attribute`.
        library: names of functions.
        r2_threshold: fraction of a curve's variance that a candidate must explain.
        choices: maximum number of candidates for an edge, not counting its removal.
        trials: maximum number of whole formulas to try.
        partial: if False, all splines stay as they are unless a whole formula is exact.
        seed: for the split of the samples, with a separate generator.

    Returns:
        A network whose `report` is a list of `EdgeReport`; empty if nothing was changed.

    Raises:
        ValueError: an unknown function.
    """
    network = SymbolicKAN.of(model)
    for name in library:
        function_named(name)
    x = training_samples(network, data)
    y = data["train_label"] if isinstance(data, dict) else network(x).detach()
    x, y = check_samples(network, x, y)
    suggestions = _suggest_for_all(network, x, library)
    candidates = {edge: _best(s, r2_threshold, choices) for edge, s in suggestions.items()}
    split = Split.of(x, y, seed)
    formulas = try_formulas(network, split, candidates, trials) if all(candidates.values()) else []
    best = min(formulas, key=lambda trial: trial.error, default=None)
    if best is not None and best.error <= EXACT * split.spread:
        result, reasons = best.model, {edge: _reason(s) for edge, s in best.choice.items()}
    elif not partial:
        return network
    else:
        result, reasons = _fix_one_by_one(network, split, library, r2_threshold, choices)
        if best is not None and best.error <= SAME * split.error(result):
            result, reasons = _agreed_formula(simplest_good_trials(formulas, split), split)
    solve(Objective(result, x, y), FINAL_STEPS)
    report = _report(result, network, suggestions, reasons)
    result = _without_zeros(result, x)
    result.report = report
    return result


def _suggest_for_all(
    model: SymbolicKAN, x: Tensor, library: Sequence[str]
) -> dict[Edge, list[Suggestion]]:
    """Suggestions for every spline edge, in order of increasing cost.

    One of them is "0", the removal of the edge, whose loss is the square of the edge's score.
    """
    edges: list[Edge] = []
    xs, ys = [], []
    with torch.no_grad():
        for number, activations in enumerate(run_layers(model, x)[1]):
            layer = activations.layer
            values = layer.edge_values(activations.x)
            for o, i in layer.numeric().nonzero().tolist():
                edges.append((number, i, o))
                xs.append(activations.x[:, i])
                ys.append(values[:, o, i])
    if not edges:
        return {}
    scores = attribute(model, x).edges
    names = [name for name in library if name != "0"]
    fitted = fit_candidates(torch.stack(xs), torch.stack(ys), names)
    for (number, i, o), y, suggestions in zip(edges, ys, fitted, strict=True):
        loss = min(float(scores[number][o, i]), 1.0) ** 2
        suggestions.append(Suggestion("0", (0.0, 1.0, 0.0, float(y.mean())), 1 - loss, loss, 0))
    return {
        edge: sorted(suggestions, key=lambda s: s.cost)
        for edge, suggestions in zip(edges, fitted, strict=True)
    }


def _best(suggestions: list[Suggestion], r2_threshold: float, choices: int) -> list[Suggestion]:
    """Those above the threshold: at most `choices` functions, and "0"."""
    fitting = [s for s in suggestions if s.r2 >= r2_threshold]
    named = [s for s in fitting if s.name != "0"][:choices]
    return [s for s in fitting if s.name == "0" or s in named]


def _fix_one_by_one(
    model: SymbolicKAN, split: Split, library: Sequence[str], r2_threshold: float, choices: int
) -> tuple[SymbolicKAN, dict[Edge, str]]:
    """Fixes one edge at a time in a copy while the held-out error does not grow.

    The edges with the clearest suggestions come first. Each edge that is fixed makes the curves of
    the others clearer, so these are tried again.
    """
    network = copy.deepcopy(model)
    solve(Objective(network, split.x, split.y), EDGE_STEPS)
    error = split.error(network)
    reasons: dict[Edge, str] = {}
    progress = True
    while progress:
        progress = False
        by_edge = _suggest_for_all(network, split.x, library)
        for edge, suggestions in sorted(by_edge.items(), key=lambda item: item[1][0].cost):
            candidates = _best(suggestions, r2_threshold, choices)
            trials = [try_choice(network, split, {edge: s}, EDGE_STEPS) for s in candidates]
            bound = SAME * max(error, EXACT * split.spread / 10)
            good = simplest_good_trials([trial for trial in trials if trial.error <= bound], split)
            layer, source, target = edge
            if not good:
                reasons[edge] = "no function fits"
            elif len(good) > 1:
                weak = attribute(network, split.x).edges[layer][target, source] < WEAK
                reasons[edge] = "weak" if weak else "ambiguous"
            else:
                network, error = good[0].model, min(error, good[0].error)
                reasons[edge] = _reason(good[0].choice[edge])
                progress = True
    return network, reasons


def _agreed_formula(good: list[Trial], split: Split) -> tuple[SymbolicKAN, dict[Edge, str]]:
    """The first of equally good formulas; edges on which the others differ become splines again."""
    network = copy.deepcopy(good[0].model)
    reasons = {}
    for edge, suggestion in good[0].choice.items():
        reasons[edge] = _reason(suggestion)
        if any(trial.choice[edge].name != suggestion.name for trial in good):
            reasons[edge] = "ambiguous"
            _make_spline(network, edge, split.x)
    return network, reasons


@torch.no_grad()
def _make_spline(model: SymbolicKAN, edge: Edge, x: Tensor) -> None:
    """Replaces a formula by the spline that fits it best on the samples, in place."""
    number, source, target = edge
    move_grids(model, x)  # the formula may have moved the inputs outside the present grids
    activations = run_layers(model, x)[1][number]
    kan = activations.layer.kan
    values = activations.layer.edge_values(activations.x).mT  # (N, in, out)
    kan.spline_weight[target, source] = kan.curve2coeff(activations.x, values)[target, source]
    kan.base_weight[target, source] = 0
    model.fix(number, source, target, None)


def _without_zeros(model: SymbolicKAN, x: Tensor) -> SymbolicKAN:
    """A copy without the edges that are "0", and without nodes that are unused then."""
    edges = [
        (number, i, o)
        for number, layer in enumerate(model.layers)
        for o, i in layer.mask.nonzero().tolist()
        if layer.names[o][i] == "0"
    ]
    return prune_edge(model, x, cut=edges)


def _reason(suggestion: Suggestion) -> str:
    return "cut" if suggestion.name == "0" else "fixed"


def _report(
    result: SymbolicKAN,
    before: SymbolicKAN,
    suggestions: dict[Edge, list[Suggestion]],
    reasons: dict[Edge, str],
) -> list[EdgeReport]:
    report = []
    for number, layer in enumerate(before.layers):
        after = result.layers[number]
        for o, i in layer.mask.nonzero().tolist():
            edge = number, i, o
            reason = reasons[edge] if edge in suggestions else "fixed before"
            name = None if reason == "cut" else after.names[o][i]
            report.append(EdgeReport(*edge, name, reason, tuple(suggestions.get(edge, ()))))
    return report
