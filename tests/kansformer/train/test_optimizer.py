"""Weight decay, the learning rate and gradient clipping."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from kansformer.train.config import TrainConfig
from kansformer.train.optimizer import clip_gradients, learning_rate, make_optimizer, make_schedule
from models.vit_model import LIKE_MLP, create_model
from tests.conftest import tiny_settings

SETTINGS = {"weight_decay": 0.05, "lr": 0.1, "lrf": 0.01}


def test_decay_spares_vectors_positions_and_splines() -> None:
    model = create_model("kansformer_micro_patch4_8", head="kan")
    optimizer = make_optimizer(model, tiny_settings("x", "y", **SETTINGS))
    decayed = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and not name.endswith(
            ("pos_embed", "cls_token", "spline_weight", "spline_scaler")
        )
        assert (id(parameter) in decayed) == matrix, name
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_frozen_parameters_stay_as_they_are() -> None:
    model = create_model("kansformer_micro_patch4_8", num_classes=3)
    model.blocks.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, tiny_settings("x", "y"))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("blocks."), name


@pytest.mark.parametrize(
    ("blocks", "rate"),
    [({}, 1.0), ({"ffn": "group-kan"}, 10.0), ({"kan_hidden": "full", **LIKE_MLP}, 3.0)],
)
def test_splines_have_separate_rates_and_decay(blocks: dict[str, Any], rate: float) -> None:
    model = create_model("kansformer_micro_patch4_8", head="kan", num_classes=3, **blocks)
    names = {id(p): name for name, p in model.named_parameters()}
    for changes, scale, decay in (
        ({}, rate, 0.0), ({"spline_lr": 3.0, "spline_decay": 0.2}, 3.0, 0.2)
    ):  # fmt: skip
        config = tiny_settings("x", "y", **SETTINGS, **changes)
        optimizer = make_optimizer(model, config)
        make_schedule(optimizer, config, 5).step_update(7)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                spline = "spline" in name
                here = (
                    scale if name.startswith("blocks.") or changes else 1.0
                )  # the head replaces no MLP
                assert group["lr"] == pytest.approx(
                    learning_rate(optimizer) * (here if spline else 1)
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
    for group in make_optimizer(ours, config).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            # timm counts the last norm with the last block
            wanted = 1.0 if name.startswith("norm.") else expected[name]
            assert group["lr_scale"] == pytest.approx(wanted), name


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.0, 50.0])
def test_rate_is_warm_up_then_cosine(warmup: float) -> None:
    config = tiny_settings("x", "y", epochs=10, warmup_epochs=warmup, **SETTINGS)
    optimizer = make_optimizer(create_model("vit_micro_patch4_8"), config)
    schedule = make_schedule(optimizer, config, steps_per_epoch=5)
    rates = []
    for step in range(50):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    first = min(round(5 * warmup), 10)
    for step, rate in enumerate(rates):
        if step < first:
            expected = 0.1 / first + (0.1 - 0.1 / first) * step / first
        else:
            phase = (step - first) / (50 - first)
            expected = 0.001 + (0.1 - 0.001) * (1 + math.cos(math.pi * phase)) / 2
        assert rate == pytest.approx(expected)
    assert min(rates) > 0


def rates(config: TrainConfig, steps_per_epoch: int, positions: Sequence[float]) -> list[float]:
    """The rates at positions of the schedule, counted in steps."""
    optimizer = make_optimizer(create_model("vit_micro_patch4_8"), config)
    schedule = make_schedule(optimizer, config, steps_per_epoch)
    values = []
    for position in positions:
        schedule.step_update(position)
        values.append(learning_rate(optimizer))
    return values


@pytest.mark.parametrize("warmup", [0.0, 0.5, 2.0, 50.0])
@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, 1), (1, 2), (2, 1), (1, 7), (2, 3), (2, 40), (9, 5)]
)
def test_short_runs_have_a_whole_schedule(
    epochs: int, steps: int, warmup: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The highest rate comes in the first fifth, and the lowest in the last step."""
    config = tiny_settings("x", "y", epochs=epochs, warmup_epochs=warmup, **SETTINGS)
    total = epochs * steps
    values = rates(config, steps, range(total + 1))
    peak = max(step for step, rate in enumerate(values) if rate == pytest.approx(0.1))
    assert peak <= total / 5
    assert max(values) == pytest.approx(0.1)
    assert values[: peak + 1] == pytest.approx(sorted(values[: peak + 1]))
    assert values[peak:] == sorted(values[peak:], reverse=True)
    if total > 1:  # one step before the end of the cosine, where 1 - cos x < x²/2
        assert values[total - 1] <= 0.001 + 0.1 * (math.pi / 2 / (total - peak)) ** 2
        assert values[total] == pytest.approx(0.001)
    assert not caplog.records, "timm warns"


@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_the_gradient_is_clipped(clip: float) -> None:
    model = nn.Linear(3, 2)
    (1e3 * model(torch.ones(4, 3))).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    norm = clip_gradients(model, clip)
    assert float(norm) == pytest.approx(float(gradient.norm()))
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()])
    if clip == math.inf:
        assert torch.equal(clipped, gradient)
    else:
        assert float(clipped.norm()) == pytest.approx(0.5, rel=1e-4)
