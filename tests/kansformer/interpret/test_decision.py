"""Explained contributions equal those of running a changed model."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kansformer.checkpoint import TrainedModel, load_model, save_model
from kansformer.data.preprocessing import Preprocessing
from kansformer.infer import Predictor
from kansformer.interpret.decision import Decision, explain_decision
from models.kan import GroupKANLinear, KANLinear
from models.vit_model import create_model

CONFIGS = {
    "kan": {},
    "kan, mean pooling, a scale": {"pool": "avg", "fc_norm": True, "layer_scale": 0.5},
    "kan, both poolings": {"pool": "both", "reg_tokens": 1},
    "kan, two class tokens": {"distilled": True, "kan_norm": False, "kan_bias": True},
    "group-kan": {"ffn": "group-kan"},
    "group-kan, a kan head": {"ffn": "group-kan", "head": "kan", "head_hidden": 6},
}


def model_of(folder: Path, **config: object) -> TrainedModel:
    """A model with noise on every parameter, reloaded from its weights file."""
    model = create_model(
        "kansformer_micro_patch4_8",
        **{"num_classes": 4, "embed_dim": 24, "depth": 2, "kan_hidden": 40, **config},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_model(folder / "m.safetensors", model, Preprocessing(8), "a b c d".split(),
               temperature=0.7)  # fmt: skip
    return load_model(folder / "m.safetensors")


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request: pytest.FixtureRequest, tmp_path: Path) -> TrainedModel:
    return model_of(tmp_path, **request.param)


@pytest.fixture
def picture() -> Tensor:
    return torch.randn(3, 8, 8)


def lead(model: TrainedModel, picture: Tensor, decision: Decision) -> float:
    """The lead between the decision's two classes, from the model's logits."""
    with torch.no_grad():
        logits = model(picture[None])[0] / model.temperature
    return float(logits[decision.winner] - logits[decision.rival])


def changed(
    model: TrainedModel, change: Callable[[KANLinear | GroupKANLinear], None]
) -> TrainedModel:
    """A copy of the model whose last block has a changed second layer."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other.get_submodule("blocks.1.mlp.fc2"))
    return other


def without_unit(unit: int) -> Callable[[KANLinear | GroupKANLinear], None]:
    def change(layer: KANLinear | GroupKANLinear) -> None:
        if isinstance(layer, GroupKANLinear):
            layer.weight[:, unit] = 0
        else:
            layer.base_weight[:, unit] = 0
            layer.spline_weight[:, unit] = 0

    return change


def test_the_lead_follows_from_the_probabilities(model: TrainedModel, picture: Tensor) -> None:
    decision = explain_decision(model, picture)
    probabilities = Predictor(model).probabilities(picture[None])[0]
    assert probabilities.topk(2).indices.tolist() == [decision.winner, decision.rival]
    ratio = float(probabilities[decision.winner] / probabilities[decision.rival])
    assert decision.lead == pytest.approx(math.log(ratio), abs=1e-4)


def test_gains_equal_those_of_models_without_the_functions(
    model: TrainedModel, picture: Tensor
) -> None:
    hidden = model.config.block_widths[-1]
    decision = explain_decision(model, picture, count=hidden)
    assert sorted(vote.unit for vote in decision.votes) == list(range(hidden))
    sizes = [abs(vote.gain) for vote in decision.votes]
    assert sizes == sorted(sizes, reverse=True)
    for vote in decision.votes[::9]:
        less = decision.lead - lead(changed(model, without_unit(vote.unit)), picture, decision)
        assert vote.gain == pytest.approx(less, abs=1e-4)
    nothing = changed(model, lambda layer: [without_unit(unit)(layer) for unit in range(hidden)])
    less = decision.lead - lead(nothing, picture, decision)
    assert decision.gain == pytest.approx(less, abs=1e-4)


def test_curves_equal_those_of_units_set_to_the_values(
    model: TrainedModel, picture: Tensor
) -> None:
    decision = explain_decision(model, picture, count=2)
    for vote in decision.votes:
        zero = lead(changed(model, without_unit(vote.unit)), picture, decision)
        for point in (0, 37, 100):

            def set_unit(_: object, args: tuple[Tensor], u: int = vote.unit,
                         x: float = float(vote.x[point])) -> tuple[Tensor]:  # fmt: skip
                hidden = args[0].clone()
                hidden[..., u] = x
                return (hidden,)

            layer = model.get_submodule("blocks.1.mlp.fc2")
            handle = layer.register_forward_pre_hook(set_unit)
            gain = lead(model, picture, decision) - zero
            handle.remove()
            assert float(vote.gains[point]) == pytest.approx(gain, abs=1e-4)
        assert vote.x[0] <= min(vote.grid[0], float(vote.values.min()))
        assert vote.x[-1] >= max(vote.grid[1], float(vote.values.max()))


def test_base_curves_equal_those_of_layers_without_splines(tmp_path: Path, picture: Tensor) -> None:
    model = model_of(tmp_path)
    (vote,) = explain_decision(model, picture, count=1).votes

    def no_splines(layer: KANLinear | GroupKANLinear) -> None:
        assert isinstance(layer, KANLinear)
        layer.spline_weight[:, vote.unit] = 0

    bare = changed(model, no_splines)
    same = next(v for v in explain_decision(bare, picture, 40).votes if v.unit == vote.unit)
    torch.testing.assert_close(vote.base_gains, same.gains, atol=1e-4, rtol=0)
    assert (vote.gains - vote.base_gains).abs().max() > 1e-3


@pytest.mark.parametrize("config", [{"ffn": "mlp"}, {"num_classes": 1}])
def test_models_without_functions_or_a_second_class_are_rejected(
    tmp_path: Path, picture: Tensor, config: dict[str, object]
) -> None:
    model = create_model("kansformer_micro_patch4_8", **{"num_classes": 4, **config})
    save_model(tmp_path / "m.safetensors", model, Preprocessing(8),
               "abcd"[: model.config.num_classes])  # fmt: skip
    with pytest.raises(ValueError, match="only models with KAN blocks"):
        explain_decision(load_model(tmp_path / "m.safetensors"), picture)
