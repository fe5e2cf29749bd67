"""Models with every kind of feed-forward block."""

import pytest
from torch import nn

from models.vit_model import VisionTransformer
from tests.kansformer.interpret.test_edges import vit

KINDS = {
    "kan": {"kan_hidden": 12},
    "kan without norm": {"kan_hidden": 12, "kan_norm": False, "kan_bias": True},
    "group-kan": {"ffn": "group-kan", "groups": 4, "mlp_ratio": 2.0},
    "group-kan with norm": {"ffn": "group-kan", "groups": 4, "mlp_ratio": 2.0, "kan_norm": True},
    "mlp": {"ffn": "mlp", "mlp_ratio": 2.0},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def model(request: pytest.FixtureRequest) -> VisionTransformer:
    model = vit(**request.param)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # gains and shifts other than 1 and 0
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return model
