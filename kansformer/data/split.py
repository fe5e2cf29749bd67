"""Seeded, stratified splits that keep groups together."""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def stratified_split(
    labels: Sequence[int] | np.ndarray,
    ratios: Sequence[float],
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> list[np.ndarray]:
    """Splits items so that each class is distributed over the parts in the given ratios.

    Groups are assigned greedily, largest first, each to the part that needs its classes most.
    Without groups, every class count is within one item of its exact share.

    Args:
        labels: (N,) class of each item.
        ratios: relative sizes of the parts, not negative.
        groups: (N,) items of one group are kept in one part; by default each item is a group.

    Returns:
        For each ratio the sorted indices of its items; every item is in exactly one part.
    """
    labels = np.asarray(labels).tolist()
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(len(labels)):
        members[index if groups is None else groups[index]].append(index)
    units = list(members.values())
    random.Random(seed).shuffle(units)
    units.sort(key=len, reverse=True)

    totals = Counter(labels)
    shares = [ratio / sum(ratios) for ratio in ratios]
    lacking = [{label: share * n for label, n in totals.items()} for share in shares]
    parts: list[list[int]] = [[] for _ in ratios]
    open_parts = [p for p in range(len(parts)) if shares[p] > 0]

    def need(part: int) -> float:
        return sum([n * lacking[part][c] / totals[c] for c, n in counts.items()])

    counts: dict[int, int]
    for unit in units:
        # single items, the common case, avoid a Counter, which takes ten times as long
        counts = {labels[unit[0]]: 1} if len(unit) == 1 else Counter([labels[i] for i in unit])
        best = max(open_parts, key=need)
        parts[best] += unit
        for label, n in counts.items():
            lacking[best][label] -= n
    return [np.array(sorted(part), dtype=np.int64) for part in parts]
