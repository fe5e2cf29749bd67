"""Rollout and gradients match their papers' definitions, and both highlight what decides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kansformer.interpret.attention import attention_rollout, gradient_map, overlay
from models.vit_model import VisionTransformer, create_model

PATTERNS = torch.stack(
    [torch.ones(8, 8), -torch.ones(8, 8), torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)]
)


def small_vit(**changes: object) -> VisionTransformer:
    settings = {"in_chans": 1, "num_classes": 3, "embed_dim": 48, "depth": 3, "ffn": "mlp"}
    return create_model("vit_micro_patch4_16", **{**settings, **changes})


def planted(count: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures with one of three patterns in each quadrant; the last one is the class."""
    patterns = torch.randint(3, (count, 4))
    rows = [torch.cat(list(PATTERNS[patterns[:, 2 * i : 2 * i + 2]].unbind(1)), -1) for i in (0, 1)]
    images = torch.cat(rows, dim=1)[:, None]  # (count, 1, 16, 16)
    return images + 2 * torch.randn_like(images), patterns[:, 3]


def test_both_maps_highlight_the_quadrant_that_decides() -> None:
    model = small_vit(depth=1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        images, labels = planted(64)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    images, labels = planted(200)
    assert (model(images).argmax(1) == labels).float().mean() > 0.9
    shares = attention_rollout(model, images)
    slopes = gradient_map(model, images, labels)
    for heat, half in ((shares, 2), (slopes, 8)):
        mass = heat[:, half:, half:].sum((1, 2)) / heat.sum((1, 2))
        assert mass.mean() > 0.6  # 0.25 by chance; 0.73 to 0.82 with several seeds


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({}, [0]),
        ({"reg_tokens": 2}, [0]),
        ({"distilled": True}, [0, 1]),
        ({"pool": "avg", "class_token": False, "num_heads": 1}, range(16)),
        ({"pool": "both"}, [*[0] * 16, *range(1, 17)]),  # half from each
        ({"ffn": "kan", "kan_hidden": 8}, [0]),
    ],
)
def test_rollout_is_the_product_of_torchs_attention(
    changes: dict[str, object], seen: list[int]
) -> None:
    model = small_vit(**changes).eval()
    images = torch.randn(2, 1, 16, 16)
    tokens = model.embed(images)
    flow = torch.eye(tokens.shape[1]).expand(2, -1, -1)
    for block in model.blocks:
        attention = nn.MultiheadAttention(48, block.attn.num_heads, batch_first=True)
        attention.load_state_dict({
            "in_proj_weight": block.attn.qkv.weight, "in_proj_bias": block.attn.qkv.bias,
            "out_proj.weight": block.attn.proj.weight, "out_proj.bias": block.attn.proj.bias,
        })  # fmt: skip
        x = block.norm1(tokens)
        flow = (0.5 * attention(x, x, x)[1] + 0.5 * torch.eye(tokens.shape[1])) @ flow
        tokens = block(tokens)
    expected = flow[:, seen].mean(1)[:, model.config.prefix_tokens :]
    expected = expected / expected.sum(1, keepdim=True)
    before = model(images)
    torch.testing.assert_close(attention_rollout(model, images).flatten(1), expected)
    assert torch.equal(model(images), before)
    assert not any(block.attn.qkv._forward_hooks for block in model.blocks)


def test_gradients_are_finite_differences() -> None:
    model = small_vit(in_chans=3).double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    targets = torch.tensor([2, 0])
    heat = gradient_map(model, images, targets)
    assert heat.shape == (2, 16, 16)
    for picture, row, column in ((0, 3, 5), (1, 15, 0)):
        slopes = []
        for channel in range(3):
            step = torch.zeros_like(images)
            step[picture, channel, row, column] = 1e-5
            up, down = (model(images + sign * step)[picture, targets[picture]] for sign in (1, -1))
            slopes.append(abs((up - down).item()) / 2e-5)
        assert heat[picture, row, column].item() == pytest.approx(max(slopes), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_overlay_is_brightest_where_the_map_is_greatest() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 2] = 0.1
    blended = overlay(Image.new("L", (200, 100), 128), heat)
    assert blended.mode == "RGB"
    assert blended.size == (800, 400)
    light = np.asarray(blended.convert("L"))
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert (row // 100, column // 200) == (1, 2)
    assert light.max() > light.min() + 50
    flat = np.asarray(overlay(Image.new("RGB", (400, 400), "white"), torch.ones(2, 2)))
    assert flat.shape == (400, 400, 3)
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() == 0
