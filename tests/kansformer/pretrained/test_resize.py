"""Other picture sizes, patch sizes and channels give the same tensors as timm's resizing."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer import checkpoint_filter_fn

from kansformer.errors import UserError
from kansformer.pretrained import load_pretrained
from kansformer.pretrained.resize import resize_state
from models.vit_model import ViTConfig
from tests.kansformer.pretrained import foreign
from tests.kansformer.pretrained.test_formats import CASES


@pytest.mark.parametrize("name", [name for name in CASES if "JAX" not in name])
def test_positions_are_timms(name: str, tmp_path: Path) -> None:
    build, suffix, _, _ = CASES[name]
    reference = build(tmp_path / f"file.{suffix}")
    whole, _ = load_pretrained(reference.path, **reference.config)
    model, report = load_pretrained(reference.path, img_size=48, **reference.config)
    config = model.config
    theirs = TimmViT(
        **{**foreign.SIZES, "img_size": 48}, class_token=config.class_token,
        no_embed_class=config.no_embed_class, global_pool="avg", num_classes=0,
    )  # fmt: skip
    theirs.num_prefix_tokens = config.prefix_tokens
    positions = checkpoint_filter_fn({"pos_embed": whole.state_dict()["pos_embed"]}, theirs)
    assert torch.equal(model.pos_embed, positions["pos_embed"])
    assert report.model["pos_embed"].status == "resized"
    assert report.parameters["resized"] == model.pos_embed.numel()
    assert sum(report.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert report.preprocessing.img_size == 48
    for key, value in whole.state_dict().items():
        assert key == "pos_embed" or torch.equal(model.state_dict()[key], value)
    assert model(torch.randn(1, 3, 48, 48)).isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"img_size": 64},
        {"img_size": 16},
        {"img_size": 48, "patch_size": 16},
        {"patch_size": 4},
        {"in_chans": 1},
        {"in_chans": 1, "patch_size": 16, "img_size": 64, "num_classes": 7},
    ],
    ids=str,
)
@torch.no_grad()
def test_models_equal_those_that_timm_loads(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = foreign.timm_vit(tmp_path / "file.pth")
    fitting = {"num_classes": 5, **changes}
    theirs = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True,
        pretrained_cfg_overlay={"file": str(reference.path), "num_classes": 5},
        **{**foreign.SIZES, **fitting},
    ).eval()  # fmt: skip
    ours, report = load_pretrained(reference.path, **changes)
    x = torch.randn(2, ours.config.in_chans, ours.config.img_size, ours.config.img_size)
    features = (ours.forward_features(x) - theirs.forward_features(x)).abs().max()
    assert features < 1e-5
    if fitting["num_classes"] == 5:
        assert (ours(x) - theirs(x)).abs().max() < 1e-5
    else:
        assert set(report.fresh) == {"head.weight", "head.bias"}
    resized = {name for name, fate in report.model.items() if fate.status == "resized"}
    assert resized <= {"pos_embed", "patch_embed.proj.weight"}
    assert ("patch_embed.proj.weight" in resized) == bool({"in_chans", "patch_size"} & set(changes))


@pytest.mark.parametrize("changes", [{"img_size": 48}, {"patch_size": 16}], ids=str)
@torch.no_grad()
def test_jax_files_are_resized_as_by_timms_loader(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = foreign.jax(tmp_path / "file.npz", **changes)
    model, _ = load_pretrained(reference.path, **changes)
    x = torch.randn(2, 3, model.config.img_size, model.config.img_size)
    assert (model.forward_features(x) - reference.features(x)).abs().max() < 1e-5
    assert reference.logits is not None
    assert (model(x) - reference.logits(x)).abs().max() < 1e-5


def test_grey_pictures_give_the_same_outputs_with_one_channel(tmp_path: Path) -> None:
    reference = foreign.timm_vit(tmp_path / "file.pth", "model")
    color, three = load_pretrained(reference.path)
    grey, one = load_pretrained(reference.path, in_chans=1)
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), color(x.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)
    assert three.preprocessing.mean == (0.485, 0.456, 0.406)
    assert one.preprocessing.mean == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert one.preprocessing.std == pytest.approx((0.229 + 0.224 + 0.225) / 3)
    assert one.preprocessing.in_chans == 1


def test_what_cannot_be_resized_is_rejected(tmp_path: Path) -> None:
    grey = foreign.timm_vit(tmp_path / "grey.pth", in_chans=1)
    model, report = load_pretrained(grey.path)
    assert model.config.in_chans == report.preprocessing.in_chans == 1
    with pytest.raises(UserError, match="of 1 channel cannot be adapted to 3"):
        load_pretrained(grey.path, in_chans=3)
    color = foreign.timm_vit(tmp_path / "color.pth")
    with pytest.raises(UserError, match="no pictures have size 32 and 4 channels"):
        load_pretrained(color.path, in_chans=4)
    with pytest.raises(UserError, match="multiple of patch_size"):
        load_pretrained(color.path, img_size=33)


@given(
    side=st.integers(1, 9), new_side=st.integers(1, 9), registers=st.integers(0, 3),
    class_token=st.booleans(), no_embed_class=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_tokens_before_the_patches_keep_their_positions(
    side: int, new_side: int, registers: int, class_token: bool, no_embed_class: bool
) -> None:
    config = ViTConfig(
        img_size=2 * new_side, patch_size=2, embed_dim=4, num_heads=1, depth=1, pool="avg",
        class_token=class_token, reg_tokens=registers, no_embed_class=no_embed_class,
    )  # fmt: skip
    prefix = 0 if no_embed_class else registers + class_token
    state = {
        "patch_embed.proj.weight": torch.randn(4, 3, 2, 2),
        "pos_embed": torch.randn(1, prefix + side**2, 4),
    }
    new, changes = resize_state(state, config, ("bicubic", True))
    assert new["pos_embed"].shape == (1, prefix + new_side**2, 4)
    assert torch.equal(new["pos_embed"][:, :prefix], state["pos_embed"][:, :prefix])
    assert set(changes) == ({"pos_embed"} if side != new_side else set())
    back, _ = resize_state(new, config, ("bicubic", True))
    assert torch.equal(back["pos_embed"], new["pos_embed"])
