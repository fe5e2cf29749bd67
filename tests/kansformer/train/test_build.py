"""The model of a run: its size and its MLP twin's, and which of its layers train."""

from dataclasses import replace

import pytest

from kansformer.train.build import build_model, freeze_layers, twin_sizes
from kansformer.train.configure import configure
from models.twins import TOLERANCE, count_parameters
from models.vit_model import create_model


def test_frozen_models_train_what_comes_after_the_blocks() -> None:
    for parts, trained in (
        ({"distilled": True}, {"head", "head_dist", "norm"}),
        ({"pre_logits": True}, {"head", "pre_logits", "norm"}),
        ({"pool": "avg", "fc_norm": True}, {"head", "fc_norm"}),
    ):
        model = create_model("vit_micro_patch4_8", num_classes=3, **parts)
        frozen = freeze_layers(model)
        left = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {name.split(".")[0] for name in left} == trained
        assert left | set(frozen) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("ffn", ["kan", "group-kan"])
def test_a_twin_has_the_width_that_was_asked_for(ffn: str) -> None:
    config, data = configure({"data_path": "digits", "mlp_ratio": 2.0, "ffn": "mlp"})
    mlp, _, _ = build_model(config, data)
    assert mlp.config.mlp_hidden == 2 * mlp.config.embed_dim
    config = replace(config, ffn=ffn, match="params")
    model, _, _ = build_model(config, data)
    assert twin_sizes(config, model.config)["parameters"] == count_parameters(mlp)
    assert count_parameters(model) == pytest.approx(count_parameters(mlp), rel=TOLERANCE)
