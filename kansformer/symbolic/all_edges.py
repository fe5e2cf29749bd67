"""From splines to formulas: one edge, or all of them at once."""

import copy
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from kansformer.curve_fitting.function_library import (
    FUNCTIONS,
    LIBRARY,
    function_named,
    value_and_slopes,
)
from kansformer.curve_fitting.least_squares import levenberg_marquardt
from kansformer.symbolic.activations import trace, training_samples
from kansformer.symbolic.attribution import attribute
from kansformer.symbolic.dataset import Dataset
from kansformer.symbolic.fitting import Objective, checked, move_grids, rmse, solve
from kansformer.symbolic.pruning import check_edge, prune_edge
from kansformer.symbolic.symbolic_layer import SymbolicKAN
from models.plain import plain

FIT_SAMPLES = 200  # places on a curve that a candidate is fitted to, by its inputs' quantiles
STARTS = 3  # places of the search that are polished
POLISH = 60  # steps


@dataclass(frozen=True)
class Suggestion:
    """A function for an edge: a·f(b·x + c) + d with (a, b, c, d) = affine.

    `r2` is the share of the curve's variance that it explains, `loss` 1 - r2 without rounding.
    """

    name: str
    affine: tuple[float, float, float, float]
    r2: float
    loss: float
    complexity: int


def search_places(kind: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rates b and shifts c (places,) to search over, for inputs in [-1, 1]."""

    def both_signs(x: Tensor) -> Tensor:
        return torch.cat([x, -x])

    def pairs(b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        grid = torch.cartesian_prod(b, c).to(like)
        return grid[:, 0], grid[:, 1]

    one, zero = torch.ones(1), torch.zeros(1)
    if kind == "shift":
        near, far = torch.linspace(0, 1, 21), torch.logspace(0.01, 1.5, 25)
        return pairs(both_signs(one), both_signs(torch.cat([near, 1 + 1e-3 * one, far])))
    if kind == "rate":
        return pairs(both_signs(torch.logspace(-1, 1.3, 30)), zero)
    if kind == "phase":
        return pairs(torch.logspace(-1, 1.6, 50), torch.arange(8) * (math.pi / 8))
    if kind == "both":
        b, c = pairs(torch.logspace(-0.7, 1.3, 16), both_signs(torch.linspace(0, 2, 17)))
        return b, b * c
    return pairs(one, zero)


@torch.no_grad()
def fit_candidates(x: Tensor, y: Tensor, library: Sequence[str]) -> list[list[Suggestion]]:
    """Fits every function to every curve at once: a search over (b, c), then Marquardt's method.

    Args:
        x, y: (curves, N) inputs and outputs.
        library: names in FUNCTIONS.

    Returns:
        For each curve what fits, best first; nothing for a curve without variance.
    """
    middle = (x.amax(dim=1) + x.amin(dim=1)) / 2
    half = (x.amax(dim=1) - x.amin(dim=1)) / 2
    mean, spread = y.mean(dim=1), y.std(dim=1, correction=0)
    flat = (half < 1e-12) | (spread < 1e-12)
    half, spread = half.masked_fill(half < 1e-12, 1.0), spread.masked_fill(spread < 1e-12, 1.0)
    ranks = torch.linspace(0, x.shape[1] - 1, min(FIT_SAMPLES, x.shape[1])).round().long()
    order = x.argsort(dim=1)[:, ranks]
    u = (x.gather(1, order) - middle[:, None]) / half[:, None]
    v = (y.gather(1, order) - mean[:, None]) / spread[:, None]
    every_u = (x - middle[:, None]) / half[:, None]

    found: list[list[Suggestion]] = [[] for _ in x]
    for name in library:
        theta, losses = _fit_function(name, u, v, every_u)
        a, b, c, d = theta.unbind(dim=-1)
        scaled = torch.stack(
            [a * spread, b / half, c - b * middle / half, d * spread + mean], dim=-1
        )
        for k, suggestions in enumerate(found):
            loss = float(losses[k])
            if math.isfinite(loss) and not flat[k]:
                a, b, c, d = scaled[k].tolist()
                suggestions.append(
                    Suggestion(name, (a, b, c, d), 1 - loss, loss, FUNCTIONS[name].complexity)
                )
    for suggestions in found:
        suggestions.sort(key=lambda s: s.loss)
    return found


def _fit_function(name: str, u: Tensor, v: Tensor, every_u: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b, c, d) (curves, 4) and 1 - R² (curves,), inf where it leaves its domain."""
    function = function_named(name)
    b, c = search_places(function.search, u)
    z = b[:, None] * u[:, None] + c[:, None]  # (curves, places, N)
    value = function.evaluate(z)
    a, d, loss = _line(value, v[:, None])
    loss = loss.masked_fill(~function.covers(z).all(dim=-1), torch.inf)
    starts = loss.topk(min(STARTS, len(b)), dim=1, largest=False).indices  # (curves, starts)
    theta = torch.stack([a, b.expand_as(a), c.expand_as(a), d], dim=-1)
    theta = theta.gather(1, starts[..., None].expand(-1, -1, 4))
    curves, count = starts.shape
    theta = theta.flatten(0, 1)
    x, y = u.repeat_interleave(count, dim=0), v.repeat_interleave(count, dim=0)

    def losses(theta: Tensor) -> Tensor:
        a, b, c, d = (p[:, None] for p in theta.unbind(-1))
        z = b * x + c
        loss = (a * function.evaluate(z) + d - y).square().mean(dim=1)
        return loss.masked_fill(~function.covers(z).all(dim=1), torch.inf)

    def quadratic(theta: Tensor) -> tuple[Tensor, Tensor]:
        value, slopes = value_and_slopes(name, x, theta)
        gradient = torch.einsum("kn,knp->kp", value - y, slopes)
        return 2 * gradient / x.shape[1], 2 * slopes.mT @ slopes / x.shape[1]

    theta, loss = levenberg_marquardt(losses, quadratic, theta, POLISH)
    z = theta[:, 1:2] * every_u.repeat_interleave(count, dim=0) + theta[:, 2:3]
    loss = loss.masked_fill(~function.covers(z).all(dim=1), torch.inf).view(curves, count)
    best = loss.argmin(dim=1)
    rows = torch.arange(curves, device=u.device)
    return theta.view(curves, count, 4)[rows, best], loss[rows, best]


def _line(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares (a, d) of a·f + d ≈ y over the last dimension, and the mean squared error."""
    centred = f - f.mean(dim=-1, keepdim=True)
    other = y - y.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1)
    a = (centred * other).mean(dim=-1) / variance.clamp_min(1e-300)
    a = torch.where(variance > 1e-20, a, 0)
    loss = (other - a[..., None] * centred).square().mean(dim=-1)
    return a, y.mean(dim=-1) - a * f.mean(dim=-1), loss.nan_to_num(torch.inf)


@dataclass(frozen=True)
class EdgeReport:
    """What became of an edge in `auto_symbolic`; numbers are those of the network given to it.

    Attributes:
        layer, source, target: the edge.
        name: the function it was given, or None if it stays a spline or is cut.
        reason: "fixed", "fixed before", "cut" (the outputs are as good without it), "no function
            fits", "weak" (it hardly matters, so that nothing tells functions apart), or "ambiguous"
            (several functions do equally well).
        suggestions: what fits its curve, best first.
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


def suggest_symbolic(
    model: nn.Module,
    layer: int,
    source: int,
    target: int,
    data: Dataset | Tensor | None = None,
    library: Sequence[str] = LIBRARY,
) -> list[Suggestion]:
    """Functions for an edge, those that fit and are simple first.

    Raises:
        ValueError: no such edge, or an unknown function.
    """
    own = SymbolicKAN.of(model)
    check_edge(own, layer, source, target)
    with torch.no_grad():
        _, layers = trace(own, training_samples(own, data))
        x = layers[layer].x
        y = layers[layer].layer.edge_values(x)[:, target, source]
    return sorted(fit_candidates(x[:, source][None], y[None], library)[0], key=cost)


def fix_symbolic(
    model: nn.Module,
    layer: int,
    source: int,
    target: int,
    name: str,
    data: Dataset | Tensor | None = None,
    affine: Sequence[float] | None = None,
) -> SymbolicKAN:
    """A copy with one edge replaced by a·f(b·x + c) + d, fitted to what the edge computes now.

    Args:
        data: samples that the fit is to follow, see `attribute`.
        affine: (a, b, c, d), in the place of a fit.

    Raises:
        ValueError: no such edge or function, or one that is not defined where the edge is used; an
            edge that is cut; or another `affine` than four finite numbers.
    """
    own = SymbolicKAN.of(model)
    if not check_edge(own, layer, source, target).mask[target, source]:
        raise ValueError(f"the edge of layer {layer} from {source} to {target} is cut")
    function_named(name)
    if affine is None:
        found = suggest_symbolic(own, layer, source, target, data, (name,))
        if not found:
            raise ValueError(
                f"{name} does not fit the edge, which is constant or not in its domain"
            )
        affine = found[0].affine
    elif len(affine) != 4 or not all(map(math.isfinite, affine)):
        raise ValueError(f"affine must be four finite numbers (a, b, c, d), not {affine}")
    own.fix(layer, source, target, name, torch.tensor(affine, dtype=torch.float64))
    return own


def unfix_symbolic(model: SymbolicKAN, layer: int, source: int, target: int) -> SymbolicKAN:
    """A copy with one edge as the spline again that it was before it was fixed.

    Raises:
        ValueError: no such edge.
    """
    own = SymbolicKAN.of(model)
    check_edge(own, layer, source, target)
    own.fix(layer, source, target, None)
    return own


Edge = tuple[int, int, int]

TRIALS = 40
TRIAL_SAMPLES = 300
TRIAL_STEPS = 60
EDGE_STEPS = 20
EXACT = 1e-8  # an error on the rest, in units of the labels' spread, that no wrong formula has
HELD_OUT = 0.2
WEAK = 1e-2  # score of an edge below which nothing tells functions apart
SAME = 1.05  # errors nearer than this do not tell two formulas apart


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
    """A copy whose edges are functions of the library, where these do as well as the splines.

    Candidates are fitted to all curves at once. Then whole formulas are tried, the most plausible
    first: each is fitted to most of the training samples and judged on the rest. The first that is
    exact wins. If none is, edge by edge is fixed as long as the error on the rest does not grow;
    what remains stays a spline, and `report` of the network returned says why.

    Args:
        data: a dataset, of which only the training half is looked at; or samples, which the
            network itself labels, see `attribute`.
        library: names of functions.
        r2_threshold: candidates that explain less of a curve's variance are left out.
        choices: most candidates for an edge, cutting it not counted.
        trials: most formulas to try.
        partial: with False, the splines stay as they are unless a whole formula is exact.
        seed: of the division of the samples, by an own generator.

    Returns:
        A network with the attribute `report`, a list of `EdgeReport`.

    Raises:
        ValueError: an unknown function.
    """
    own = SymbolicKAN.of(model)
    for name in library:
        function_named(name)
    x = training_samples(own, data)
    y = data["train_label"] if isinstance(data, dict) else own(x).detach()
    x, y = checked(own, x, y)
    found = _all_suggestions(own, x, library)
    viable = {edge: _viable(s, r2_threshold, choices) for edge, s in found.items()}
    split = _split(x, y, seed)
    formulas = _try_formulas(own, split, viable, trials) if all(viable.values()) else []
    best = min(formulas, key=lambda trial: trial.error, default=None)
    if best is not None and best.error <= EXACT * split.spread:
        result, reasons = best.model, {edge: _reason(s) for edge, s in best.choice.items()}
    elif not partial:
        return own
    else:
        result, reasons = _edge_by_edge(own, split, library, r2_threshold, choices)
        if best is not None and best.error <= SAME * _error(result, split):
            result, reasons = _simplest(formulas, split)
    solve(Objective(result, x, y), POLISH)
    report = _report(result, own, found, reasons)
    result = _without_zeros(result, x)
    result.report = report
    return result


def _without_zeros(model: SymbolicKAN, x: Tensor) -> SymbolicKAN:
    """A copy without the edges that are "0", and the nodes that nothing enters or leaves then."""
    edges = [
        (number, i, o)
        for number, layer in enumerate(model.layers)
        for o, i in layer.mask.nonzero().tolist()
        if layer.names[o][i] == "0"
    ]
    return prune_edge(model, x, cut=edges)


@dataclass(frozen=True)
class _Split:
    """Training samples, most to fit to and the rest to judge by."""

    x: Tensor
    y: Tensor
    rest_x: Tensor
    rest_y: Tensor
    spread: float


@dataclass(frozen=True)
class _Trial:
    model: SymbolicKAN
    choice: dict[Edge, Suggestion]
    error: float

    @property
    def complexity(self) -> int:
        return sum(s.complexity for s in self.choice.values())


def _split(x: Tensor, y: Tensor, seed: int) -> _Split:
    generator = torch.Generator().manual_seed(plain(seed))
    order = torch.randperm(len(x), generator=generator).to(x.device)
    count = max(len(x) - round(HELD_OUT * len(x)), 1)
    rest = order[count:] if count < len(x) else order
    order = order[:count]
    spread = max(float(y.std(correction=0)), 1e-300)
    return _Split(x[order], y[order], x[rest], y[rest], spread)


def _error(model: SymbolicKAN, split: _Split) -> float:
    error = rmse(model, split.rest_x, split.rest_y)
    return error if math.isfinite(error) else math.inf


def cost(suggestion: Suggestion) -> float:
    """A step of complexity must pay by a tenth of the loss."""
    return suggestion.complexity + math.log10(suggestion.loss + 1e-8)


def _all_suggestions(
    model: SymbolicKAN, x: Tensor, library: Sequence[str]
) -> dict[Edge, list[Suggestion]]:
    """Of every edge that is a spline, fitted all at once; "0" loses as much as the edge matters."""
    edges: list[Edge] = []
    xs, ys = [], []
    with torch.no_grad():
        for number, part in enumerate(trace(model, x)[1]):
            values = part.layer.edge_values(part.x)
            for o, i in part.layer.numeric().nonzero().tolist():
                edges.append((number, i, o))
                xs.append(part.x[:, i])
                ys.append(values[:, o, i])
    if not edges:
        return {}
    scores = attribute(model, x).edges
    names = [name for name in library if name != "0"]
    found = fit_candidates(torch.stack(xs), torch.stack(ys), names)
    for (number, i, o), y, suggestions in zip(edges, ys, found, strict=True):
        loss = min(float(scores[number][o, i]), 1.0) ** 2
        suggestions.append(Suggestion("0", (0.0, 1.0, 0.0, float(y.mean())), 1 - loss, loss, 0))
    return {edge: sorted(s, key=cost) for edge, s in zip(edges, found, strict=True)}


def _fixed(model: SymbolicKAN, choice: dict[Edge, Suggestion]) -> SymbolicKAN:
    own = copy.deepcopy(model)
    for edge, suggestion in choice.items():
        own.fix(*edge, suggestion.name, torch.tensor(suggestion.affine, dtype=torch.float64))
    return own


def _best_first(viable: dict[Edge, list[Suggestion]]) -> Iterator[dict[Edge, Suggestion]]:
    """Every choice of one function per edge, those with the least sum of costs first."""
    edges = list(viable)
    costs = [[cost(s) for s in viable[edge]] for edge in edges]
    first = (0,) * len(edges)
    queue = [(sum(c[0] for c in costs), first)]
    seen = {first}
    while queue:
        _, ranks = heapq.heappop(queue)
        yield {edge: viable[edge][rank] for edge, rank in zip(edges, ranks, strict=True)}
        for k, rank in enumerate(ranks):
            following = (*ranks[:k], rank + 1, *ranks[k + 1 :])
            if rank + 1 < len(costs[k]) and following not in seen:
                seen.add(following)
                total = sum(c[r] for c, r in zip(costs, following, strict=True))
                heapq.heappush(queue, (total, following))


def _try_formulas(
    model: SymbolicKAN, split: _Split, viable: dict[Edge, list[Suggestion]], trials: int
) -> list[_Trial]:
    """Whole formulas, each fitted from where its edges' curves put it; ends at an exact one."""
    few = replace(split, x=split.x[:TRIAL_SAMPLES], y=split.y[:TRIAL_SAMPLES])
    found: list[_Trial] = []
    for choice in itertools.islice(_best_first(viable), trials):
        found.append(_trial(model, few, choice, TRIAL_STEPS))
        if found[-1].error <= EXACT * split.spread:
            break
    return found


def _plainest(trials: list[_Trial], split: _Split) -> list[_Trial]:
    """The best trial, where a step of complexity must halve the error, and those that equal it."""
    if not trials:
        return []
    floor = EXACT * split.spread / 10

    def cost(trial: _Trial) -> float:
        return trial.complexity + math.log2(max(trial.error, floor))

    best = min(trials, key=cost)
    bound = SAME * max(best.error, floor)
    alike = [t for t in trials if t.complexity == best.complexity and t.error <= bound]
    return sorted(alike, key=lambda trial: trial.error)


def _simplest(formulas: list[_Trial], split: _Split) -> tuple[SymbolicKAN, dict[Edge, str]]:
    """The plainest of the formulas; edges on which equally good ones disagree stay splines."""
    good = _plainest(formulas, split)
    own = copy.deepcopy(good[0].model)
    reasons = {}
    for edge, suggestion in good[0].choice.items():
        reasons[edge] = _reason(suggestion)
        if any(trial.choice[edge].name != suggestion.name for trial in good):
            reasons[edge] = "ambiguous"
            _make_spline(own, edge, split.x)
    return own, reasons


@torch.no_grad()
def _make_spline(model: SymbolicKAN, edge: Edge, x: Tensor) -> None:
    """Turns a formula into the spline that is nearest to it on the samples, in place."""
    number, source, target = edge
    move_grids(model, x)  # the formula may have moved its nodes off the old ones
    part = trace(model, x)[1][number]
    kan = part.layer.kan
    values = part.layer.edge_values(part.x).mT  # (N, in, out)
    kan.spline_weight[target, source] = kan.curve2coeff(part.x, values)[target, source]
    kan.base_weight[target, source] = 0
    model.fix(number, source, target, None)


def _edge_by_edge(
    model: SymbolicKAN, split: _Split, library: Sequence[str], r2_threshold: float, choices: int
) -> tuple[SymbolicKAN, dict[Edge, str]]:
    """Fixes one edge after the other, as long as the error does not grow.

    The clearest edges come first. The others' curves get clearer then, and are looked at again.
    """
    own = copy.deepcopy(model)
    solve(Objective(own, split.x, split.y), EDGE_STEPS)
    error = _error(own, split)
    reasons: dict[Edge, str] = {}
    progress = True
    while progress:
        progress = False
        found = _all_suggestions(own, split.x, library)
        for edge, suggestions in sorted(found.items(), key=lambda item: cost(item[1][0])):
            viable = _viable(suggestions, r2_threshold, choices)
            trials = [_trial(own, split, {edge: s}, EDGE_STEPS) for s in viable]
            bound = SAME * max(error, EXACT * split.spread / 10)
            good = _plainest([trial for trial in trials if trial.error <= bound], split)
            layer, source, target = edge
            if not good:
                reasons[edge] = "no function fits"
            elif len(good) > 1:
                weak = attribute(own, split.x).edges[layer][target, source] < WEAK
                reasons[edge] = "weak" if weak else "ambiguous"
            else:
                own, error = good[0].model, min(error, good[0].error)
                reasons[edge] = _reason(good[0].choice[edge])
                progress = True
    return own, reasons


def _viable(suggestions: list[Suggestion], r2_threshold: float, choices: int) -> list[Suggestion]:
    fitting = [s for s in suggestions if s.r2 >= r2_threshold]
    named = [s for s in fitting if s.name != "0"][:choices]
    return [s for s in fitting if s.name == "0" or s in named]


def _reason(suggestion: Suggestion) -> str:
    return "cut" if suggestion.name == "0" else "fixed"


def _trial(model: SymbolicKAN, split: _Split, choice: dict[Edge, Suggestion], steps: int) -> _Trial:
    own = _fixed(model, choice)
    solve(Objective(own, split.x, split.y), steps, enough=(1e-14 * split.spread) ** 2)
    return _Trial(own, choice, _error(own, split))


def _report(
    result: SymbolicKAN,
    before: SymbolicKAN,
    found: dict[Edge, list[Suggestion]],
    reasons: dict[Edge, str],
) -> list[EdgeReport]:
    report = []
    for number, layer in enumerate(before.layers):
        after = result.layers[number]
        for o, i in layer.mask.nonzero().tolist():
            edge = number, i, o
            reason = reasons[edge] if edge in found else "fixed before"
            name = None if reason == "cut" else after.names[o][i]
            report.append(EdgeReport(*edge, name, reason, tuple(found.get(edge, ()))))
    return report
