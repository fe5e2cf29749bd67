"""Decay and the learning rate."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from kansformer.train.config import TrainConfig
from kansformer.train.optimiser import learning_rate, make_optimiser, make_schedule
from models.vit_model import LIKE_MLP, create_model
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


def test_frozen_parameters_stay_as_they_are() -> None:
    model = create_model("kansformer_micro_patch4_8", num_classes=3)
    model.blocks.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = make_optimiser(model, tiny_settings("x", "y"))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("blocks."), name


@pytest.mark.parametrize(
    ("blocks", "rate"),
    [({}, 1.0), ({"ffn": "group-kan"}, 10.0), ({"kan_hidden": "full", **LIKE_MLP}, 3.0)],
)
def test_splines_have_a_rate_and_a_decay_of_their_own(blocks: dict[str, Any], rate: float) -> None:
    model = create_model("kansformer_micro_patch4_8", head="kan", num_classes=3, **blocks)
    names = {id(p): name for name, p in model.named_parameters()}
    for changes, scale, decay in (
        ({}, rate, 0.0), ({"spline_lr": 3.0, "spline_decay": 0.2}, 3.0, 0.2)
    ):  # fmt: skip
        config = tiny_settings("x", "y", **SETTINGS, **changes)
        optimiser = make_optimiser(model, config)
        make_schedule(optimiser, config, 5).step_update(7)
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                spline = "spline" in name
                here = scale if name.startswith("blocks.") or changes else 1.0  # the head is none
                assert group["lr"] == pytest.approx(
                    learning_rate(optimiser) * (here if spline else 1)
                )
                if spline:
                    assert group["weight_decay"] == decay


def test_layer_decay_is_timms() -> None:
    ours = create_model("vit_micro_patch4_8", num_classes=3)
    config = tiny_settings("x", "y", layer_decay=0.7, **SETTINGS)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=96, depth=4, num_classes=3
    )
    scales = {}
    for group in param_groups_layer_decay(theirs, layer_decay=0.7):
        scales |= {id(p): group["lr_scale"] for p in group["params"]}
    expected = {name: scales[id(p)] for name, p in theirs.named_parameters()}
    names = {id(p): name for name, p in ours.named_parameters()}
    for group in make_optimiser(ours, config).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            # timm counts the last norm with the last block
            wanted = 1.0 if name.startswith("norm.") else expected[name]
            assert group["lr_scale"] == pytest.approx(wanted), name


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.0, 50.0])
def test_rate_is_warm_up_then_cosine(warmup: float) -> None:
    config = tiny_settings("x", "y", epochs=10, warmup_epochs=warmup, **SETTINGS)
    optimiser = make_optimiser(create_model("vit_micro_patch4_8"), config)
    schedule = make_schedule(optimiser, config, steps_per_epoch=5)
    rates = []
    for step in range(50):
        schedule.step_update(step)
        rates.append(optimiser.param_groups[0]["lr"])
    first = min(round(5 * warmup), 10)
    for step, rate in enumerate(rates):
        if step < first:
            expected = 0.1 / first + (0.1 - 0.1 / first) * step / first
        else:
            phase = (step - first) / (50 - first)
            expected = 0.001 + (0.1 - 0.001) * (1 + math.cos(math.pi * phase)) / 2
        assert rate == pytest.approx(expected)
    assert min(rates) > 0


def rates(config: TrainConfig, steps_per_epoch: int, places: Sequence[float]) -> list[float]:
    """The rate at places of the schedule, counted in steps."""
    optimiser = make_optimiser(create_model("vit_micro_patch4_8"), config)
    schedule = make_schedule(optimiser, config, steps_per_epoch)
    found = []
    for place in places:
        schedule.step_update(place)
        found.append(learning_rate(optimiser))
    return found


@pytest.mark.parametrize("warmup", [0.0, 0.5, 2.0, 50.0])
@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, 1), (1, 2), (2, 1), (1, 7), (2, 3), (2, 40), (9, 5)]
)
def test_short_runs_have_a_whole_schedule(
    epochs: int, steps: int, warmup: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The highest rate within the first fifth, and at the end what is left for the last step."""
    config = tiny_settings("x", "y", epochs=epochs, warmup_epochs=warmup, **SETTINGS)
    total = epochs * steps
    found = rates(config, steps, range(total + 1))
    peak = max(step for step, rate in enumerate(found) if rate == pytest.approx(0.1))
    assert peak <= total / 5
    assert max(found) == pytest.approx(0.1)
    assert found[: peak + 1] == pytest.approx(sorted(found[: peak + 1]))
    assert found[peak:] == sorted(found[peak:], reverse=True)
    if total > 1:  # one step before the end of the cosine, where 1 - cos x < x²/2
        assert found[total - 1] <= 0.001 + 0.1 * (math.pi / 2 / (total - peak)) ** 2
        assert found[total] == pytest.approx(0.001)
    assert not caplog.records, "timm warns"
