"""Our model's outputs equal those of each format's library."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from kansformer.pretrained import load_pretrained
from kansformer.pretrained.formats import _grid, _ratio, convert
from kansformer.pretrained.read import read_file
from models.vit_model import ViTConfig
from tests.kansformer.pretrained import foreign
from tests.kansformer.pretrained.foreign import Reference

Build = Callable[[Path], Reference]
HALF, IMAGENET = 0.5, (0.485, 0.456, 0.406)
# name: (function that writes the file, its suffix, the reported format, the reported mean)
CASES: dict[str, tuple[Build, str, str, object]] = {
    "timm": (foreign.timm_vit, "pth", "timm ViT", HALF),
    "timm without biases": (lambda p: foreign.timm_vit(p, qkv_bias=False), "bin", "timm ViT", HALF),
    "timm with registers and mean": (
        lambda p: foreign.timm_vit(
            p, reg_tokens=4, class_token=False, no_embed_class=True, global_pool="avg",
            init_values=1e-5,
        ), "pt", "timm ViT", HALF,
    ),
    "timm in a trainer's file": (
        lambda p: foreign.timm_vit(p, "state_dict_ema"), "tar", "timm ViT", HALF
    ),
    "timm's DINOv2": (
        lambda p: foreign.timm_vit(p, num_classes=0, init_values=1e-5), "pth", "DINOv2", IMAGENET
    ),
    "timm's DINOv2 with registers": (
        lambda p: foreign.timm_vit(
            p, num_classes=0, init_values=1e-5, reg_tokens=4, no_embed_class=True
        ), "pth", "DINOv2", IMAGENET,
    ),
    "registers with positions": (
        lambda p: foreign.timm_vit(p, reg_tokens=4), "pth", "timm ViT", HALF
    ),
    "DeiT": (lambda p: foreign.timm_vit(p, "model"), "pth", "DeiT", IMAGENET),
    "DeiT distilled": (foreign.deit_distilled, "pth", "DeiT, distilled", IMAGENET),
    "DeiT III": (foreign.deit3, "pth", "DeiT III", IMAGENET),
    "DINO": (foreign.dino, "pth", "DINO", IMAGENET),
    "DINOv2": (foreign.dinov2, "pth", "DINOv2", IMAGENET),
    "DINOv2 with registers": (lambda p: foreign.dinov2(p, 4), "pth", "DINOv2", IMAGENET),
    "DINOv2 in chunks": (lambda p: foreign.dinov2(p, 4, True), "pth", "DINOv2", IMAGENET),
    "MAE": (lambda p: foreign.mae(p, False), "pth", "MAE, pretrained", IMAGENET),
    "MAE with decoder": (lambda p: foreign.mae(p, True), "pth", "MAE, pretrained", IMAGENET),
    "MAE fine-tuned": (
        lambda p: foreign.timm_vit(p, "model", global_pool="avg"), "pth", "MAE, fine", IMAGENET
    ),
    "older trainer": (foreign.pre_logits, "pth", "timm ViT", HALF),
    "torchvision": (foreign.torchvision_vit, "pth", "torchvision ViT", IMAGENET),
    "torchvision with pre_logits": (
        lambda p: foreign.torchvision_vit(p, representation_size=64), "pth", "torchvision", IMAGENET
    ),
    "HF ViT": (
        lambda p: foreign.hugging_face(p, "ViTForImageClassification"), "", "Hugging Face ViT", HALF
    ),
    "HF ViT of transformers 5": (
        lambda p: foreign.hugging_face(p, "ViTForImageClassification", saved=False),
        "safetensors", "Hugging Face ViT", HALF,
    ),
    "HF ViT, bare": (lambda p: foreign.hugging_face(p, "ViTModel"), "", "Hugging Face ViT", HALF),
    "HF ViT, 4 heads": (
        lambda p: foreign.hugging_face(p, "ViTModel", num_attention_heads=4, layer_norm_eps=1e-3),
        "", "Hugging Face ViT", HALF,
    ),
    "HF DeiT": (
        lambda p: foreign.hugging_face(p, "DeiTForImageClassificationWithTeacher"),
        "", "Hugging Face DeiT", IMAGENET,
    ),
    "HF DeiT, one classifier": (
        lambda p: foreign.hugging_face(p, "DeiTForImageClassification"),
        "", "Hugging Face DeiT", IMAGENET,
    ),
    "HF ViT-MAE": (foreign.hf_mae, "", "Hugging Face ViT-MAE", IMAGENET),
    "HF DINOv2": (
        lambda p: foreign.hugging_face(p, "Dinov2Model"), "", "Hugging Face DINOv2", IMAGENET
    ),
    "HF DINOv2 of transformers 5": (
        lambda p: foreign.hugging_face(p, "Dinov2Model", saved=False),
        "safetensors", "Hugging Face DINOv2", IMAGENET,
    ),
    "HF DINOv2 classifier": (
        lambda p: foreign.hugging_face(p, "Dinov2ForImageClassification"),
        "", "Hugging Face DINOv2", IMAGENET,
    ),
    "HF DINOv2 with registers": (
        lambda p: foreign.hugging_face(p, "Dinov2WithRegistersModel"),
        "", "Hugging Face DINOv2 with registers", IMAGENET,
    ),
    "JAX": (foreign.jax, "npz", "Google's JAX ViT", HALF),
    "JAX with pre_logits": (lambda p: foreign.jax(p, pre_logits=True), "npz", "Google's", HALF),
    "JAX big_vision": (lambda p: foreign.jax(p, big_vision=True), "npz", "Google's", HALF),
    "vision_kansformer": (foreign.vision_kansformer, "pth", "ViT with efficient-kan", IMAGENET),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_features_and_logits_are_the_librarys(name: str, tmp_path: Path) -> None:
    build, suffix, what, mean = CASES[name]
    reference = build(tmp_path / f"file.{suffix}")
    model, report = load_pretrained(reference.path, **reference.config)
    assert not model.training
    x = torch.randn(3, 3, 32, 32)
    differences = [(model.forward_features(x) - reference.features(x)).abs().max()]
    if reference.logits is None:
        assert model.config.num_classes == 0
    else:
        differences.append((model(x) - reference.logits(x)).abs().max())
    assert max(differences) < 1e-5

    assert report.format.startswith(what)
    assert report.preprocessing.mean == mean
    assert report.preprocessing.img_size == 32
    parameters = dict(model.named_parameters())
    assert sum(report.parameters.values()) == sum(p.numel() for p in parameters.values())
    assert report.parameters["fresh"] == report.parameters["resized"] == 0
    assert report.model.keys() == model.state_dict().keys()
    assert report.fresh == ()
    assert all(fate.reason for fate in report.file.values() if fate.status == "skipped")
    assert report.format in str(report)


@pytest.mark.parametrize("name", CASES)
def test_another_number_of_classes_gives_a_fresh_head_and_nothing_else(
    name: str, tmp_path: Path
) -> None:
    build, suffix, _, _ = CASES[name]
    reference = build(tmp_path / f"file.{suffix}")
    whole, _ = load_pretrained(reference.path, **reference.config)
    model, report = load_pretrained(reference.path, num_classes=7, **reference.config)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert set(report.fresh) == {n for n in model.state_dict() if n.startswith("head")}
    assert report.parameters["fresh"] == sum(
        p.numel() for n, p in model.named_parameters() if n.startswith("head")
    )
    assert sum(report.parameters.values()) == sum(p.numel() for p in model.parameters())
    for key, value in model.state_dict().items():
        if not key.startswith("head"):
            assert torch.equal(value, whole.state_dict()[key])


@pytest.mark.parametrize("name", CASES)
def test_conversions_do_not_change_their_input(name: str, tmp_path: Path) -> None:
    build, suffix, _, _ = CASES[name]
    raw = read_file(build(tmp_path / f"file.{suffix}").path)
    before = {key: value.clone() for key, value in raw.tensors.items()}
    first, second = (convert(raw.tensors, raw.unwrapped) for _ in range(2))
    assert raw.tensors.keys() == before.keys()
    assert all(torch.equal(raw.tensors[key], before[key]) for key in before)
    assert first.left == {}
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)
    used = {key for keys in first.sources.values() for key in keys}
    assert used | set(first.skipped) == set(before)  # each tensor of the file is accounted for
    assert not used & set(first.skipped)


@given(hidden=st.integers(1, 20_000), embed_dim=st.integers(1, 4096))
def test_the_hidden_width_follows_from_its_ratio(hidden: int, embed_dim: int) -> None:
    assume(hidden < 999 * embed_dim)  # what a config allows
    config = ViTConfig(embed_dim=embed_dim, num_heads=1, mlp_ratio=_ratio(hidden, embed_dim))
    assert config.mlp_hidden == hidden


@given(side=st.integers(1, 128), prefix=st.integers(0, 9), no_embed_class=st.booleans())
def test_the_grid_follows_from_the_number_of_positions(
    side: int, prefix: int, no_embed_class: bool
) -> None:
    positions = side**2 + (0 if no_embed_class else prefix)
    inferred_side, without = _grid(positions, prefix)
    assert inferred_side**2 + (0 if without else prefix) == positions
    if prefix == 1 and positions > 1:  # no two squares differ by one
        assert (inferred_side, without) == (side, no_embed_class)
