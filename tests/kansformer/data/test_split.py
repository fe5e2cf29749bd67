"""The split is a partition, stratified, seeded, and keeps groups together."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kansformer.data.split import stratified_split

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=200)
RATIOS = st.lists(st.floats(0.05, 1), min_size=2, max_size=3)


@given(LABELS, RATIOS, st.integers(0, 99))
@settings(deadline=None)
def test_each_item_is_in_one_part_and_each_class_is_stratified(
    labels: list[int], ratios: list[float], seed: int
) -> None:
    parts = stratified_split(labels, ratios, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part, ratio in zip(parts, ratios, strict=True):
        counts = Counter(np.array(labels)[part].tolist())
        for label, total in Counter(labels).items():
            assert abs(counts[label] - total * ratio / sum(ratios)) <= 1 + 1e-9


@given(LABELS, RATIOS, st.integers(0, 99), st.integers(1, 20))
@settings(deadline=None)
def test_groups_stay_together(
    labels: list[int], ratios: list[float], seed: int, number: int
) -> None:
    groups = [i % number for i in range(len(labels))]
    parts = stratified_split(labels, ratios, seed, groups)
    groups_per_part = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, groups_per_part)) == len(set(groups))
    assert sum(map(len, parts)) == len(labels)


def test_seeds() -> None:
    labels = [0, 1] * 100
    first, same, other = (stratified_split(labels, [0.8, 0.2], seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_shares_with_many_small_groups() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 200, 3000)
    labels = rng.integers(0, 10, 3000)
    parts = stratified_split(labels, [0.8, 0.1, 0.1], 0, groups.tolist())
    assert [len(part) / 3000 for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    for part in parts:
        assert np.bincount(labels[part], minlength=10).min() > 0
