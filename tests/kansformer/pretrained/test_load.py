"""Heads, our weights files, the settings that a caller may change, and the report."""

import json
import re
from pathlib import Path

import pytest
import torch

from kansformer.checkpoint import load_model, save_model
from kansformer.data import Preprocessing
from kansformer.errors import UserError
from kansformer.pretrained import load_for_classes, load_pretrained
from kansformer.pretrained.load import LEAST_SHARE
from models.vit_model import VisionTransformer, create_model
from tests.conftest import ROOT
from tests.kansformer.pretrained import foreign

NAMES = ("ant", "bee", "cat")


def small_model(**changes: object) -> VisionTransformer:
    return create_model(
        "kansformer_micro_patch4_8", **{"num_classes": 3, "depth": 2, "in_chans": 1, **changes}
    ).eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, VisionTransformer]:
    model = small_model(head="kan")
    path = tmp_path / "best.safetensors"
    save_model(path, model, Preprocessing(8, 1, 0.3, 0.4), NAMES, {"epoch": 7})
    return path, model


def test_our_head_is_kept_only_for_the_same_classes(
    saved: tuple[Path, VisionTransformer],
) -> None:
    path, old = saved
    same, report = load_for_classes(path, NAMES)
    assert report.preprocessing == Preprocessing(8, 1, 0.3, 0.4)
    assert report.fresh == ()
    assert report.format == "KANsformer"
    assert all(torch.equal(v, old.state_dict()[k]) for k, v in same.state_dict().items())

    for names in (("ant", "cat", "bee"), ("dog", "elk")):
        model, report = load_for_classes(path, names, drop_path_rate=0.1)
        assert model.config.num_classes == len(names)
        assert model.config.drop_path_rate == 0.1
        assert set(report.fresh) == {k for k in model.state_dict() if k.startswith("head.")}
        loaded = {name for name, fate in report.model.items() if fate.status == "loaded"}
        assert loaded | set(report.fresh) == set(model.state_dict())
        for name in loaded:
            assert torch.equal(model.state_dict()[name], old.state_dict()[name])
    with pytest.raises(UserError, match="do not fit"):
        load_for_classes(path, NAMES, embed_dim=48)
    with pytest.raises(UserError, match="multiple of patch_size"):
        load_for_classes(path, NAMES, img_size=9)


def test_our_files_keep_their_blocks_and_can_be_resized(
    saved: tuple[Path, VisionTransformer],
) -> None:
    path, old = saved
    model, report = load_pretrained(path)
    assert model.config == old.config
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), old(x))
    buffers = {name for name, _ in model.named_buffers()}
    assert buffers
    assert all(report.model[name].status == "loaded" for name in buffers)
    assert report.parameters["loaded"] == sum(p.numel() for p in old.parameters())

    model, report = load_pretrained(path, img_size=16)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)
    assert report.preprocessing == Preprocessing(16, 1, 0.3, 0.4)
    with pytest.raises(UserError, match="cannot become mlp blocks"):
        load_for_classes(path, NAMES, ffn="mlp")
    with pytest.raises(UserError, match="only MLP blocks can be converted"):
        load_pretrained(path, ffn="mlp")
    assert load_pretrained(path, ffn=old.config.ffn)[0].config == old.config
    model, report = load_for_classes(path, NAMES, head="linear")
    assert set(report.fresh) == {"head.weight", "head.bias"}


def test_a_convolutional_stem_takes_pictures_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    old = small_model(stem="conv").eval()
    save_model(path, old, Preprocessing(8, 1, 0.3, 0.4), NAMES, {})
    model, report = load_pretrained(path)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), old(x))
    assert report.fresh == ()
    model, _ = load_pretrained(path, img_size=16)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)
    for changes in ({"patch_size": 2}, {"in_chans": 3}, {"stem": "patch"}):
        with pytest.raises(UserError, match=r"patch_embed\."):
            load_pretrained(path, **changes)


def test_the_shipped_weights_load_unchanged() -> None:
    path = ROOT / "weights" / "digits.safetensors"
    model, report = load_pretrained(path)
    assert report.parameters["loaded"] == sum(p.numel() for p in model.parameters())
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(model(x), load_model(path)(x))


def test_a_foreign_model_survives_saving_and_loading(tmp_path: Path) -> None:
    for name, reference in (
        ("deit", foreign.deit_distilled(tmp_path / "deit.pth")),
        ("tanh", foreign.pre_logits(tmp_path / "tanh.pth")),
        ("dino", foreign.dinov2(tmp_path / "dino.pth", registers=4)),
    ):
        model, report = load_pretrained(reference.path)
        names = [str(index) for index in range(model.config.num_classes)]
        save_model(tmp_path / f"{name}.safetensors", model, report.preprocessing, names)
        again = load_model(tmp_path / f"{name}.safetensors")
        assert again.config == model.config
        assert again.preprocessing == report.preprocessing
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(again(x), model(x))


def test_a_files_class_names_decide_whether_its_head_is_kept(tmp_path: Path) -> None:
    labels = {0: "ant", 1: "bee", 2: "cat"}
    reference = foreign.hugging_face(tmp_path / "x", "ViTForImageClassification", id2label=labels)
    _, report = load_for_classes(reference.path, NAMES)
    assert report.fresh == ()
    _, report = load_for_classes(reference.path, NAMES[::-1])
    assert set(report.fresh) == {"head.weight", "head.bias"}
    assert report.model["head.bias"].reason == "the class names or their order differ"

    unknown = foreign.timm_vit(tmp_path / "file.pth")
    for names in ("abcde", "edcba"):
        _, report = load_for_classes(unknown.path, tuple(names))
        assert report.fresh == ()
        assert any("does not name its classes" in note for note in report.notes)


def test_mean_and_std_come_from_timms_config(tmp_path: Path) -> None:
    reference = foreign.timm_vit(tmp_path / "file.pth")
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({"num_features": 64, "pretrained_cfg": cfg}))
    _, report = load_pretrained(reference.path)
    assert (report.preprocessing.mean, report.preprocessing.std) == (
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
    )
    assert "settings were read from the config.json next to the file" in report.notes
    assert not any("assuming 0.5" in note for note in report.notes)
    _, report = load_pretrained(reference.path, preprocessing="imagenet")
    assert report.preprocessing.mean == (0.485, 0.456, 0.406)
    for other in ({"num_features": 32, "pretrained_cfg": cfg}, {"hidden_size": 64}):
        (tmp_path / "config.json").write_text(json.dumps(other))
        _, report = load_pretrained(reference.path)
        assert report.preprocessing.mean == 0.5
        assert any("assuming 0.5" in note for note in report.notes)


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_base_patch32_siglip_gap_256"])
def test_models_that_only_look_like_a_vit_are_rejected_by_name(name: str, tmp_path: Path) -> None:
    path = foreign.timm_vit(tmp_path / "file.pth").path
    values = {"architecture": name, "num_features": 64, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"not supported: {name}, named in its config.json"):
        load_pretrained(path)


def test_the_caller_can_set_what_the_file_does_not_contain(tmp_path: Path) -> None:
    reference = foreign.timm_vit(tmp_path / "file.pth", num_heads=4)
    x = torch.randn(2, 3, 32, 32)
    model, report = load_pretrained(reference.path, num_heads=4)
    assert torch.allclose(model(x), reference.logits(x), rtol=0, atol=1e-5)  # type: ignore[misc]
    assert not any(note.startswith("assuming 1 attention head") for note in report.notes)
    odd = foreign.timm_vit(tmp_path / "odd.pth", embed_dim=48, num_heads=3, mlp_ratio=100.5 / 48)
    with pytest.raises(UserError, match="set num_heads"):
        load_pretrained(odd.path)
    model, _ = load_pretrained(odd.path, num_heads=3, drop_path_rate=0.3)
    assert torch.allclose(model(x), odd.logits(x), rtol=0, atol=1e-5)  # type: ignore[misc]
    huge = foreign.timm_vit(tmp_path / "huge.pth", embed_dim=1280, depth=1, mlp_ratio=0.1)
    assert load_pretrained(huge.path)[0].config.num_heads == 16
    with pytest.raises(UserError, match="unknown model settings: color"):
        load_pretrained(reference.path, color=1)
    with pytest.raises(UserError, match="preprocessing 'vgg': unknown"):
        load_pretrained(reference.path, preprocessing="vgg")
    with pytest.raises(UserError, match="multiple of num_heads"):
        load_pretrained(reference.path, num_heads=5)


def test_parts_can_be_added_and_removed(tmp_path: Path) -> None:
    path = foreign.timm_vit(tmp_path / "file.pth").path
    model, report = load_pretrained(path, depth=1)
    assert len(model.blocks) == 1
    assert report.file["blocks.1.norm1.bias"].reason == "depth=1 was requested"
    assert report.parameters["fresh"] == 0

    model, report = load_pretrained(path, depth=3)
    assert all(name.startswith("blocks.2.") for name in report.fresh)
    assert report.model["blocks.2.norm1.bias"].reason == "depth=3 was requested"
    filled = 1 - report.parameters["fresh"] / sum(report.parameters.values())
    assert filled > LEAST_SHARE
    with pytest.raises(UserError, match=r"fills only \d+% of the model, less than 50%"):
        load_pretrained(path, depth=6)

    model, report = load_pretrained(path, layer_scale=1e-3)
    assert {n for n in model.state_dict() if ".ls" in n} == set(report.fresh)
    model, report = load_pretrained(path, pool="avg", fc_norm=True)
    assert set(report.fresh) == {"fc_norm.weight", "fc_norm.bias"}
    assert report.file["norm.weight"].status == "skipped"
    model, report = load_pretrained(path, qkv_bias=False)
    assert report.file["blocks.0.attn.qkv.bias"].status == "skipped"
    model, report = load_pretrained(path, num_classes=0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    assert report.file["head.weight"].status == "skipped"
    for changes in ({"embed_dim": 128}, {"mlp_ratio": 2.0}):
        with pytest.raises(UserError, match="tensors do not fit the model"):
            load_pretrained(path, **changes)

    with pytest.raises(UserError, match="17 positions do not fit 5 tokens and a square of patches"):
        load_pretrained(path, reg_tokens=4)
    path = foreign.deit3(tmp_path / "deit3.pth").path  # only its patches have positions
    model, report = load_pretrained(path, reg_tokens=4)
    assert report.fresh == ("reg_token",)
    assert report.model["reg_token"].reason == "reg_tokens=4 was requested"


def test_the_report_accounts_for_every_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    reference = foreign.hugging_face(path, "ViTForImageClassification", saved=False)
    model, report = load_pretrained(reference.path, num_classes=7, img_size=48)
    file = report.file
    assert len(file) == 40
    assert file["layernorm.bias"].status == "converted"
    assert file["layers.0.attention.q_proj.weight"].reason == "in blocks.0.attn.qkv.weight"
    assert file["embeddings.position_embeddings"].status == "resized"
    assert file["classifier.bias"].reason == "7 classes instead of 5"
    assert report.model["pos_embed"].reason == "4x4 to 6x6 patches"
    assert report.model["blocks.0.attn.qkv.bias"].reason.endswith("v_proj.bias joined")
    assert report.model["head.bias"].reason == "7 classes instead of 5"
    assert "taken from vit." in report.notes

    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["parameters"] == report.parameters
    assert plain["model"]["pos_embed"] == {"status": "resized", "reason": "4x4 to 6x6 patches"}
    text = str(report)
    counts = [
        int(n.replace(",", ""))
        for n in re.findall(r"([\d,]+) (?:loaded|converted|resized|fresh)", text.splitlines()[1])
    ]
    assert sum(counts) == sum(p.numel() for p in model.parameters())
    for words in (
        "Hugging Face ViT; ", "resized: pos_embed (4x4 to 6x6 patches)",
        "fresh: head.bias, head.weight (7 classes instead of 5)",
        "skipped: classifier.bias, classifier.weight (7 classes", "mean 0.5, std 0.5",
        "note: assuming 1 attention head, ",
    ):  # fmt: skip
        assert words in text
