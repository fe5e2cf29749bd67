"""The Vision Transformer against timm's, and its configuration."""

import json

import pytest
import timm
import torch
from torch import nn

from models.kan import KANLinear
from models.vit_model import VisionTransformer, ViTConfig, create_model, model_config


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"img_size": 96, "num_classes": 7, "in_chans": 1}),
        ("vit_small_patch32_224", {"num_classes": 10}),
    ],
)
def test_timms_weights_give_timms_logits(name: str, changes: dict[str, int]) -> None:
    theirs = timm.create_model(name, **changes).eval()
    ours = create_model(name, **changes).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    config = ours.config
    x = torch.randn(2, config.in_chans, config.img_size, config.img_size)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x))
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("ffn", ["kan", "mlp"])
@pytest.mark.parametrize("head", ["linear", "kan"])
def test_every_parameter_receives_a_gradient(ffn: str, head: str) -> None:
    model = create_model("kansformer_micro_patch4_8", num_classes=3, ffn=ffn, head=head)
    nn.functional.cross_entropy(
        model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0])
    ).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


PARTS = [
    {"layer_scale": 0.1, "reg_tokens": 4, "no_embed_class": True},
    {"reg_tokens": 2, "pool": "avg", "fc_norm": True, "qkv_bias": False},
    {"class_token": False, "pool": "avg", "fc_norm": False},
    {"pool": "both", "reg_tokens": 2, "head": "kan"},
    {"distilled": True, "layer_scale": 0.1},
    {"distilled": True, "no_embed_class": True, "reg_tokens": 3},
    {"pre_logits": True, "norm_eps": 1e-12},
    {"num_classes": 0},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_optional_parts_receive_gradients_and_survive_json(parts: dict[str, object]) -> None:
    model = create_model("kansformer_micro_patch4_8", **{"num_classes": 3, **parts})
    y = model(torch.randn(4, 3, 8, 8))
    assert y.shape == (4, model.config.num_classes or model.config.head_inputs)
    (y * torch.randn_like(y)).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    assert ViTConfig.from_dict(json.loads(json.dumps(model.config.to_dict()))) == model.config
    assert len(model.forward_features(torch.randn(1, 3, 8, 8))[0]) == 4 + model.config.prefix_tokens
    tokens = {n for n, _ in model.named_parameters() if n.endswith("_token")}
    assert tokens <= model.no_weight_decay() <= {n for n, _ in model.named_parameters()}


@torch.no_grad()
def test_a_head_of_both_poolings_is_the_sum_of_a_head_of_each() -> None:
    both, token, avg = (
        create_model("vit_micro_patch4_8", num_classes=3, reg_tokens=2, pool=pool).eval()
        for pool in ("both", "token", "avg")
    )
    state = both.state_dict()
    for model, weight in zip((token, avg), both.head.weight.chunk(2, dim=1), strict=True):
        model.load_state_dict({**state, "head.weight": weight})
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(both(x) + both.head.bias, token(x) + avg(x))


def test_a_config_from_before_the_optional_parts_is_the_same_model() -> None:
    config = model_config("kansformer_micro_patch4_8")
    old = {k: v for k, v in config.to_dict().items() if k not in {n for p in PARTS for n in p}}
    assert ViTConfig.from_dict({**old, "num_classes": config.num_classes}) == config


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("ffn", ["kan", "mlp"])
@torch.no_grad()
def test_block_outputs_have_their_inputs_variance_at_depth_12(size: str, ffn: str) -> None:
    model = create_model(f"kansformer_{size}_patch8_32", ffn=ffn, drop_path_rate=0.0)
    assert len(model.blocks) == 12
    x = model.patch_embed(torch.randn(8, 3, 32, 32))
    first = x.var()
    for block in model.blocks:
        y = block(x)
        assert 0.6 < float(y.var() / x.var()) < 1.6
        x = y
    assert 0.5 < float(x.var() / first) < 4


@torch.no_grad()
def test_kan_layers_themselves_keep_the_variance() -> None:
    model = create_model("kansformer_tiny_patch8_32")
    x = torch.randn(16, 17, 192)
    scale = 1 / (2 * 12) ** 0.5  # of a block's output
    for block in model.blocks:
        assert 0.6 < float(block.mlp.fc1(x).var()) < 1.6
        assert 0.6 < float((block.mlp(x) / scale).var()) < 1.6


@pytest.mark.parametrize("patch_size", [1, 2, 8])
def test_a_convolutional_stem_gives_a_token_to_each_patch(patch_size: int) -> None:
    size = 4 * patch_size
    model = create_model(
        "kansformer_micro", img_size=size, patch_size=patch_size, num_classes=3, stem="conv"
    ).eval()
    x = torch.randn(2, 3, size, size)
    tokens = model.patch_embed(x)
    assert tokens.shape == (2, 16, 96)
    torch.testing.assert_close(model.patch_embed(x[:1]), tokens[:1])  # whatever else is there
    changed = x.clone()
    changed[:, :, :patch_size, :patch_size] += 1
    moved = (model.patch_embed(changed) - tokens).abs().amax(dim=(0, 2)).view(4, 4) > 0
    assert moved[0, 0]
    assert not moved[:, 2:].any()  # patches overlap with their neighbors alone
    assert not moved[2:].any()
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match=f"not of {size} pixels"):
        model(torch.randn(1, 3, 2 * size, size))


def test_config_survives_json() -> None:
    config = model_config("kansformer_small_patch16_224", grid_range=(-4, 4), kan_hidden="full")
    assert ViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="color"):
        ViTConfig.from_dict({"color": 1})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"img_size": 30, "patch_size": 4}, "multiple of patch_size"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"depth": 0}, "depth"),
        ({"ffn": "moe"}, "ffn"),
        ({"head": "moe"}, "head"),
        ({"kan_hidden": "wide"}, "kan_hidden"),
        ({"drop_rate": 1.0}, "drop_rate"),
        ({"num_classes": 2.5}, "num_classes"),
        ({"num_classes": -1}, "num_classes"),
        ({"reg_tokens": -1}, "reg_tokens"),
        ({"pool": "max"}, "pool"),
        ({"class_token": False}, "pool must be"),
        ({"class_token": 2}, "class_token must be true or false"),
        ({"distilled": True, "class_token": False, "pool": "avg"}, "class_token too"),
        ({"distilled": True, "pool": "avg"}, "distilled goes with"),
        ({"layer_scale": "small"}, "layer_scale"),
        ({"norm_eps": -1e-6}, "norm_eps"),
        ({"stem": "pool"}, "stem"),
        ({"stem": "conv", "img_size": 28, "patch_size": 7}, "power of 2"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ViTConfig(**changes)


@pytest.mark.parametrize("size", ["micro", "tiny", "small", "base", "large", "huge"])
def test_names(size: str) -> None:
    kan = model_config(f"kansformer_{size}_patch16_224", num_classes=5)
    mlp = model_config(f"vit_{size}_patch32_384_in21k")
    assert (kan.ffn, kan.patch_size, kan.img_size, kan.num_classes) == ("kan", 16, 224, 5)
    assert (mlp.ffn, mlp.patch_size, mlp.img_size, mlp.num_classes) == ("mlp", 32, 384, 21843)
    with torch.device("meta"):
        ours, twin = VisionTransformer(kan), VisionTransformer(model_config(f"vit_{size}_patch16"))
    blocks = [sum(p.numel() for p in model.blocks.parameters()) for model in (ours, twin)]
    assert 0.8 < blocks[0] / blocks[1] < 1.1


@pytest.mark.parametrize("name", ["resnet50", "vit_giant_patch16_224", "vit_tiny_patch16_224x"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown model"):
        create_model(name)
    with pytest.raises(ValueError, match="unknown model settings: width"):
        create_model("vit_tiny_patch16_224", width=3)


def test_full_width_is_the_mlps() -> None:
    model = create_model("kansformer_micro_patch4_8", kan_hidden="full")
    assert model.blocks[0].mlp.fc1.out_features == 4 * 96


def test_no_weight_decay_names_what_is_no_plain_matrix() -> None:
    model = create_model("kansformer_micro_patch4_8", head="kan")
    names = dict(model.named_parameters())
    exempt = model.no_weight_decay()
    assert exempt <= names.keys()
    splines = {n for n in names if n.endswith(("spline_weight", "spline_scaler"))}
    assert exempt == splines | {"pos_embed", "cls_token"}
    assert len(splines) == 2 * sum(isinstance(m, KANLinear) for m in model.modules())
