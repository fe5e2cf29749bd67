"""Sizes may be NumPy's integers of any width: the models are those of Python's, and so is JSON."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.kan import KAN, GroupKANLinear, KANFeedForward, KANLinear
from models.kan_grid import refine_grid
from models.kan_variants import CheckpointedKAN, DeepKAN, ModularKAN, ResidualKAN, SparseKAN
from models.vit_model import ViTConfig, create_model

Number = Callable[[int], Any]
each_integer = pytest.mark.parametrize("number", [np.int64, np.int16, np.uint8])


def refined(n: Number) -> nn.Module:
    layer = KANLinear(3, 4)
    refine_grid(layer, n(200))
    return layer


# 200 + 2·3 + 60 and the like are beyond eight bits
MAKERS: dict[str, Callable[[Number], nn.Module]] = {
    "layer": lambda n: KANLinear(n(200), n(120), grid_size=n(250), spline_order=n(5)),
    "layer as in efficient-kan": lambda n: KANLinear(
        n(3), n(4), n(250), n(3), init="efficient-kan"
    ),
    "grid range": lambda n: KANLinear(3, 4, grid_range=np.array([n(1), n(100)])),
    "groups": lambda n: GroupKANLinear(n(200), n(120), groups=n(8), grid_size=n(250)),
    "block": lambda n: KANFeedForward(n(16), n(200), n(120), groups=n(8)),
    "KAN": lambda n: KAN([n(3), n(4), n(2)], grid_size=n(250)),
    "KAN of an array": lambda n: KAN(np.array([n(3), n(4), n(2)])),
    "residual": lambda n: ResidualKAN(np.array([n(3), n(4), n(2)])),
    "deep": lambda n: DeepKAN((n(3), n(4), n(2)), grid_size=n(250)),
    "sparse": lambda n: SparseKAN(np.array([n(3), n(4), n(2)])),
    "modular": lambda n: ModularKAN(
        ["a"], {"m": ["a"]}, hidden=np.array([n(4)]), out_features=n(2)
    ),
    "checkpointed": lambda n: CheckpointedKAN([n(3), n(4), n(2)], every=n(2)),
    "refined": refined,
    "ViT": lambda n: create_model(
        "kansformer_micro", img_size=n(32), patch_size=n(16), depth=n(2), num_classes=n(200),
        hidden_widths=np.array([n(4), n(6)]), grid_sizes=[n(5), n(7)], head="kan", head_hidden=n(3),
    ),
    "ViT with a convolutional stem": lambda n: create_model(
        "vit_micro", img_size=n(32), patch_size=n(16), depth=n(1), stem="conv"
    ),
}  # fmt: skip


@each_integer
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_models_of_numpys_sizes(make: Callable[[Number], nn.Module], number: Number) -> None:
    torch.manual_seed(0)
    own = make(number)
    torch.manual_seed(0)
    expected = make(int)
    torch.testing.assert_close(own.state_dict(), expected.state_dict(), rtol=0, atol=0)
    for one, other in zip(own.modules(), expected.modules(), strict=True):
        for name, value in vars(other).items():
            assert type(vars(one)[name]) is type(value), name
    if hasattr(own, "every"):
        torch.testing.assert_close(own(torch.ones(1, 3)), expected(torch.ones(1, 3)))


def test_a_config_is_of_plain_types() -> None:
    settings = {
        "embed_dim": np.int32(96), "depth": np.uint8(2), "grid_sizes": np.array([5, 6], np.int16),
        "grid_range": np.array([-2.0, 2.0], np.float32), "mlp_ratio": np.float32(2),
        "drop_rate": np.float64(0.1), "qkv_bias": np.bool_(False), "kan_norm": np.True_,
        "layer_scale": np.float32(0.5), "kan_hidden": np.int64(9), "ffn": np.str_("kan"),
    }  # fmt: skip
    config = ViTConfig(**settings)
    again = ViTConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert config.grid_sizes == (5, 6)
    assert config.qkv_bias is False
    with pytest.raises(ValueError, match=r"depth must be a whole number of at least 1, not 2\.5"):
        ViTConfig(depth=np.float64(2.5))
    with pytest.raises(ValueError, match="depth must be a whole number of at least 1, not 0"):
        ViTConfig(depth=np.int64(0))
