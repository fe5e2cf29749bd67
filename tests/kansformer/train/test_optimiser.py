"""Decay and the learning rate."""

import math

import pytest

from kansformer.train.optimiser import make_optimiser, make_schedule
from models.vit_model import create_model
from tests.conftest import tiny_settings

SETTINGS = {"weight_decay": 0.05, "lr": 0.1, "lrf": 0.01}


def test_decay_spares_vectors_positions_and_splines() -> None:
    model = create_model("kansformer_micro_patch4_8", head="kan")
    optimiser = make_optimiser(model, tiny_settings("x", "y", **SETTINGS))
    decayed = {
        id(p) for group in optimiser.param_groups if group["weight_decay"] for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and not name.endswith(
            ("pos_embed", "cls_token", "spline_weight", "spline_scaler")
        )
        assert (id(parameter) in decayed) == matrix, name
    assert sum(len(g["params"]) for g in optimiser.param_groups) == len(list(model.parameters()))


def test_frozen_parameters_are_not_optimised() -> None:
    model = create_model("kansformer_micro_patch4_8")
    model.blocks.requires_grad_(False)
    optimiser = make_optimiser(model, tiny_settings("x", "y"))
    count = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.0, 50.0])
def test_rate_is_warm_up_then_cosine(warmup: float) -> None:
    config = tiny_settings("x", "y", epochs=10, warmup_epochs=warmup, **SETTINGS)
    optimiser = make_optimiser(create_model("vit_micro_patch4_8"), config)
    schedule = make_schedule(optimiser, config, steps_per_epoch=5)
    rates = []
    for step in range(50):
        schedule.step_update(step)
        rates.append(optimiser.param_groups[0]["lr"])
    first = min(round(5 * warmup), 49)
    for step, rate in enumerate(rates):
        if step < first:
            expected = 0.1 / first + (0.1 - 0.1 / first) * step / first
        else:
            phase = (step - first) / (50 - first)
            expected = 0.001 + (0.1 - 0.001) * (1 + math.cos(math.pi * phase)) / 2
        assert rate == pytest.approx(expected)
    assert min(rates) > 0
