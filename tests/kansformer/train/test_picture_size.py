"""The picture size is the largest that a budget of time allows; times are given, not measured."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from kansformer.train.picture_size import (
    FEWEST,
    TIMED_BATCH,
    candidate_sizes,
    choose_size,
    fitting_size,
    seconds_per_picture,
)
from models.twins import count
from models.vit_model import model_config

FLOPS = {84: 36, 98: 49, 112: 64, 126: 81}


@pytest.mark.parametrize(
    ("patch", "native"), [(14, 518), (16, 224), (16, 384), (8, 224), (32, 224)]
)
def test_candidates_rise_by_a_constant_factor_of_cost(patch: int, native: int) -> None:
    sizes = candidate_sizes(patch, native)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == patch * FEWEST
    assert sizes[-1] == native // patch * patch
    assert all(size % patch == 0 for size in sizes)
    costs = [size**2 for size in sizes]
    factors = [b / a for a, b in pairwise(costs)]
    assert all(1.0 < factor < 1.6 for factor in factors)
    assert all(factor > 1.25 for factor in factors[:-1])  # the last one is the native size


def test_a_small_model_has_one_candidate() -> None:
    assert candidate_sizes(16, 64) == [64]
    assert candidate_sizes(16, 96) == [96]


def test_the_largest_size_in_the_budget() -> None:
    def chosen(budget: float) -> int:
        return choose_size(0.01, FLOPS, 84, epochs=10, budget=budget)

    assert chosen(0.1) == 84
    assert chosen(0.1 * 64 / 36 + 1e-9) == 112
    assert chosen(0.1 * 64 / 36 - 1e-9) == 98
    assert chosen(9.9) == 126
    assert chosen(0.01) == 84, "the smallest, if none fits"
    twice = [choose_size(0.01, FLOPS, 84, epochs, 0.3) for epochs in (20, 10)]
    assert twice[0] <= twice[1]


def test_a_fitting_size_is_that_of_the_measurement() -> None:
    config = replace(model_config("vit_micro_patch8_64"), img_size=128)
    flops = {size: count(replace(config, img_size=size), "flops") for size in (48, 128)}
    ticks = iter(float(number) for number in range(100))  # each step takes one second
    size, seconds = fitting_size(config, epochs=2, budget=1e9, clock=lambda: next(ticks))
    assert size == 128
    assert seconds == pytest.approx(2 / TIMED_BATCH * flops[128] / flops[48])
    ticks = iter(float(number) for number in range(100))
    budget = 2 / TIMED_BATCH
    size, seconds = fitting_size(config, epochs=2, budget=budget, clock=lambda: next(ticks))
    assert (size, seconds) == (48, budget)


@pytest.mark.parametrize("backward", [True, False])
def test_measuring_is_the_least_time_and_draws_no_number(backward: bool) -> None:
    steps = [1.0, 50.0, 2 * TIMED_BATCH, 54.0, TIMED_BATCH, 99.0]  # the first one is not counted
    times = iter(np.repeat(np.cumsum([0.0, *steps]), 2)[1:])
    before = torch.get_rng_state()
    config = model_config("vit_micro_patch8_16")
    assert seconds_per_picture(config, backward=backward, clock=lambda: next(times)) == 1.0
    assert torch.equal(torch.get_rng_state(), before)
