"""The model of a run: its size and its MLP twin's."""

from dataclasses import replace

import pytest

from kansformer.train.build import build_model, twin_sizes
from kansformer.train.configure import configure
from models.twins import TOLERANCE, count_parameters


@pytest.mark.parametrize("ffn", ["kan", "group-kan"])
def test_a_twin_has_the_width_that_was_asked_for(ffn: str) -> None:
    config, data = configure({"data_path": "digits", "mlp_ratio": 2.0, "ffn": "mlp"})
    mlp, _, _ = build_model(config, data)
    assert mlp.config.mlp_hidden == 2 * mlp.config.embed_dim
    config = replace(config, ffn=ffn, match="params")
    model, _, _ = build_model(config, data)
    assert twin_sizes(config, model.config)["parameters"] == count_parameters(mlp)
    assert count_parameters(model) == pytest.approx(count_parameters(mlp), rel=TOLERANCE)
