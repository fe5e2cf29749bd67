"""Formulas for several edges at once: fitted as a whole, compared on held-out samples."""

import copy
import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kansformer.curve_fitting.candidates import Suggestion
from kansformer.symbolic.fitting import rmse, solve
from kansformer.symbolic.objective import Objective
from kansformer.symbolic.symbolic_kan import SymbolicKAN
from models.plain import plain

Edge = tuple[int, int, int]  # layer, source, target

TRIAL_SAMPLES = 300
TRIAL_STEPS = 60
HELD_OUT = 0.2  # fraction of the samples
EXACT = 1e-8  # held-out error, relative to the labels' spread, that only the true formula reaches
SAME = 1.05  # ratio of errors up to which two formulas count as equally good


@dataclass(frozen=True)
class Split:
    """Training samples: most to fit to, and the rest, which is held out to compare formulas.

    Attributes:
        x, y: (N, inputs) and (N, outputs) to fit to.
        rest_x, rest_y: the same of the held-out samples.
        spread: standard deviation of all labels.
    """

    x: Tensor
    y: Tensor
    rest_x: Tensor
    rest_y: Tensor
    spread: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, seed: int) -> "Split":
        """Splits samples at random; a single sample is used for both parts."""
        generator = torch.Generator().manual_seed(plain(seed))
        order = torch.randperm(len(x), generator=generator).to(x.device)
        count = max(len(x) - round(HELD_OUT * len(x)), 1)
        rest = order[count:] if count < len(x) else order
        order = order[:count]
        spread = max(float(y.std(correction=0)), 1e-300)
        return cls(x[order], y[order], x[rest], y[rest], spread)

    def error(self, model: SymbolicKAN) -> float:
        """Root mean squared error on the held-out samples; infinite if it is not finite."""
        error = rmse(model, self.rest_x, self.rest_y)
        return error if math.isfinite(error) else math.inf


@dataclass(frozen=True)
class Trial:
    """A network in which some edges have been fixed to formulas, and then all parameters fitted.

    Attributes:
        model: the network.
        choice: the formula of each of these edges.
        error: on the held-out samples.
    """

    model: SymbolicKAN
    choice: dict[Edge, Suggestion]
    error: float

    @property
    def complexity(self) -> int:
        """Sum over the edges."""
        return sum(s.complexity for s in self.choice.values())


def try_choice(
    model: SymbolicKAN, split: Split, choice: dict[Edge, Suggestion], steps: int
) -> Trial:
    """Fixes edges to formulas in a copy, and fits it."""
    network = copy.deepcopy(model)
    for edge, suggestion in choice.items():
        network.fix(*edge, suggestion.name, torch.tensor(suggestion.affine, dtype=torch.float64))
    solve(Objective(network, split.x, split.y), steps, enough=(1e-14 * split.spread) ** 2)
    return Trial(network, choice, split.error(network))


def try_formulas(
    model: SymbolicKAN, split: Split, candidates: dict[Edge, list[Suggestion]], trials: int
) -> list[Trial]:
    """Tries formulas of the whole network, the most plausible first, until one is exact.

    Args:
        candidates: for each spline edge, in order of increasing cost.
        trials: maximum number of formulas to try.
    """
    few = replace(split, x=split.x[:TRIAL_SAMPLES], y=split.y[:TRIAL_SAMPLES])
    done: list[Trial] = []
    for choice in itertools.islice(_in_order_of_cost(candidates), trials):
        done.append(try_choice(model, few, choice, TRIAL_STEPS))
        if done[-1].error <= EXACT * split.spread:
            break
    return done


def _in_order_of_cost(
    candidates: dict[Edge, list[Suggestion]],
) -> Iterator[dict[Edge, Suggestion]]:
    """All choices of one candidate per edge, in order of increasing sum of costs."""
    edges = list(candidates)
    costs = [[s.cost for s in candidates[edge]] for edge in edges]
    first = (0,) * len(edges)
    queue = [(sum(c[0] for c in costs), first)]
    seen = {first}
    while queue:
        _, ranks = heapq.heappop(queue)
        yield {edge: candidates[edge][rank] for edge, rank in zip(edges, ranks, strict=True)}
        for k, rank in enumerate(ranks):
            following = (*ranks[:k], rank + 1, *ranks[k + 1 :])
            if rank + 1 < len(costs[k]) and following not in seen:
                seen.add(following)
                total = sum(c[r] for c, r in zip(costs, following, strict=True))
                heapq.heappush(queue, (total, following))


def simplest_good_trials(trials: list[Trial], split: Split) -> list[Trial]:
    """The best trial, and those that are as simple and equally good, in order of increasing error.

    One unit of complexity must halve the error.
    """
    if not trials:
        return []
    floor = EXACT * split.spread / 10

    def cost(trial: Trial) -> float:
        return trial.complexity + math.log2(max(trial.error, floor))

    best = min(trials, key=cost)
    bound = SAME * max(best.error, floor)
    alike = [t for t in trials if t.complexity == best.complexity and t.error <= bound]
    return sorted(alike, key=lambda trial: trial.error)
