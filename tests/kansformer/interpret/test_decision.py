"""What the last block's functions did: the same as changing the model and running it again."""

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
    "kan, two class tokens": {"distilled": True, "kan_norm": False, "kan_bias": True},
    "group-kan": {"ffn": "group-kan"},
    "group-kan, a kan head": {"ffn": "group-kan", "head": "kan", "head_hidden": 6},
}


def model_of(folder: Path, **config: object) -> TrainedModel:
    """A model with every parameter away from its start, back from its weights file."""
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


def lead(model: TrainedModel, picture: Tensor, found: Decision) -> float:
    """The lead of the same two classes, by a run of the model."""
    with torch.no_grad():
        logits = model(picture[None])[0] / model.temperature
    return float(logits[found.winner] - logits[found.rival])


def changed(
    model: TrainedModel, change: Callable[[KANLinear | GroupKANLinear], None]
) -> TrainedModel:
    """A copy of the model with another second layer in the last block."""
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


def test_the_lead_is_the_probabilities(model: TrainedModel, picture: Tensor) -> None:
    found = explain_decision(model, picture)
    chances = Predictor(model).probabilities(picture[None])[0]
    assert chances.topk(2).indices.tolist() == [found.winner, found.rival]
    ratio = float(chances[found.winner] / chances[found.rival])
    assert found.lead == pytest.approx(math.log(ratio), abs=1e-4)


def test_gains_are_those_of_models_without_the_functions(
    model: TrainedModel, picture: Tensor
) -> None:
    hidden = model.config.block_widths[-1]
    found = explain_decision(model, picture, count=hidden)
    assert sorted(vote.unit for vote in found.votes) == list(range(hidden))
    sizes = [abs(vote.gain) for vote in found.votes]
    assert sizes == sorted(sizes, reverse=True)
    for vote in found.votes[::9]:
        less = found.lead - lead(changed(model, without_unit(vote.unit)), picture, found)
        assert vote.gain == pytest.approx(less, abs=1e-4)
    nothing = changed(model, lambda layer: [without_unit(unit)(layer) for unit in range(hidden)])
    less = found.lead - lead(nothing, picture, found)
    assert found.gain == pytest.approx(less, abs=1e-4)


def test_curves_are_those_of_units_that_are_given_the_values(
    model: TrainedModel, picture: Tensor
) -> None:
    found = explain_decision(model, picture, count=2)
    for vote in found.votes:
        zero = lead(changed(model, without_unit(vote.unit)), picture, found)
        for place in (0, 37, 100):

            def given(_: object, args: tuple[Tensor], u: int = vote.unit,
                      x: float = float(vote.x[place])) -> tuple[Tensor]:  # fmt: skip
                hidden = args[0].clone()
                hidden[..., u] = x
                return (hidden,)

            layer = model.get_submodule("blocks.1.mlp.fc2")
            handle = layer.register_forward_pre_hook(given)
            gain = lead(model, picture, found) - zero
            handle.remove()
            assert float(vote.gains[place]) == pytest.approx(gain, abs=1e-4)
        assert vote.x[0] <= min(vote.grid[0], float(vote.values.min()))
        assert vote.x[-1] >= max(vote.grid[1], float(vote.values.max()))


def test_base_curves_are_those_of_layers_without_splines(tmp_path: Path, picture: Tensor) -> None:
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
def test_without_functions_or_a_rival_there_is_nothing_to_explain(
    tmp_path: Path, picture: Tensor, config: dict[str, object]
) -> None:
    model = create_model("kansformer_micro_patch4_8", **{"num_classes": 4, **config})
    save_model(tmp_path / "m.safetensors", model, Preprocessing(8),
               "abcd"[: model.config.num_classes])  # fmt: skip
    with pytest.raises(ValueError, match="straight lines"):
        explain_decision(load_model(tmp_path / "m.safetensors"), picture)
