"""A ViT inside a trainer's checkpoint is recognized by its names, whatever their prefix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from kansformer.errors import UserError
from kansformer.pretrained import load_pretrained
from tests.kansformer.pretrained import foreign
from tests.kansformer.pretrained.foreign import SIZES, Reference

# Entries of a LightningModule besides its model: losses and metrics, some infinite or not tensors
OTHERS: dict[str, Any] = {
    "criterion.weight": torch.ones(5),
    "criterion.rel_pos": torch.ones(5),
    "train_acc.tp": torch.zeros(5, dtype=torch.int64),
    "val_best.value": torch.tensor(torch.inf),
    "val_curve.preds": torch.zeros(0),
    "val_curve._extra_state": {"threshold": 0.5},
    "temperature": torch.tensor(1.0),
    "names": ["a", "b"],
    "nothing": None,
}
FORMATS: dict[str, Callable[[Path], Reference]] = {
    "timm": foreign.timm_vit,
    "torchvision": foreign.torchvision_vit,
    "transformers": lambda path: foreign.hugging_face(path, "ViTForImageClassification"),
    "transformers' MAE": foreign.hf_mae,
    "efficient-kan": foreign.vision_kansformer,
}
PREFIXES = ("model.", "net.", "encoder.", "_forward_module.model.", "my_task.backbone_v2.body.")


def lightning(path: Path, state: dict[str, Any]) -> Path:
    """A checkpoint with the entries of Lightning's trainer."""
    torch.save({
        "epoch": 3, "global_step": 40, "pytorch-lightning_version": "2.4.0", "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}}, "optimizer_states": [{"state": {}}],
        "lr_schedulers": [], "callbacks": {"ModelCheckpoint{}": {"best": torch.ones(())}},
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1, "model": "vit"},
    }, path)  # fmt: skip
    return path


def tensors_of(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("build", FORMATS.values(), ids=FORMATS)
def test_lightnings_checkpoints_load(
    build: Callable[[Path], Reference], prefix: str, tmp_path: Path
) -> None:
    reference = build(tmp_path / "plain.pth")
    state = {prefix + name: value for name, value in tensors_of(reference.path).items()}
    path = lightning(tmp_path / "epoch=3.ckpt", {**OTHERS, **state})
    model, report = load_pretrained(path)
    assert report.fresh == ()
    skipped = {name for name, fate in report.file.items() if fate.status == "skipped"}
    assert skipped >= set(OTHERS)
    assert any(note.startswith("taken from state_dict / ") for note in report.notes)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(x), reference.features(x), rtol=0, atol=1e-5
        )
        if reference.logits is not None:
            torch.testing.assert_close(model(x), reference.logits(x), rtol=0, atol=1e-5)


def test_compiled_and_wrapped_parts_are_recognized(tmp_path: Path) -> None:
    reference = foreign.timm_vit(tmp_path / "plain.pth")
    state = {
        "model._orig_mod.module." + name.replace("blocks.0.", "blocks.0._orig_mod."): value
        for name, value in tensors_of(reference.path).items()
    }
    model, report = load_pretrained(lightning(tmp_path / "a.ckpt", state))
    assert report.fresh == ()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), reference.logits(x), rtol=0, atol=1e-5)


def two_parts(head: nn.Module, **options: Any) -> tuple[dict[str, Tensor], TimmViT]:
    """The state of a module with a ViT without a head, and a separate head beside it."""
    body = foreign.perturb(TimmViT(**SIZES, num_classes=0, **options))
    return nn.ModuleDict({"encoder": body, "head": head}).state_dict(), body


def test_a_linear_head_beside_the_vit_is_used(tmp_path: Path) -> None:
    head = nn.Linear(64, 7)
    state, body = two_parts(head)
    model, report = load_pretrained(lightning(tmp_path / "a.ckpt", {**OTHERS, **state}))
    assert report.fresh == ()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), head(body(x)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "head", [nn.Linear(128, 7), nn.Linear(64, 7, bias=False), nn.Sequential(nn.Linear(64, 7))]
)
def test_other_heads_beside_the_vit_are_skipped(head: nn.Module, tmp_path: Path) -> None:
    state, body = two_parts(head)
    model, report = load_pretrained(lightning(tmp_path / "a.ckpt", state))
    assert model.config.num_classes == 0
    assert {n for n, fate in report.file.items() if fate.status == "skipped"} == {
        name for name in state if name.startswith("head.")
    }
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), body(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("average", ["ema_model.", "model_ema.module.", "teacher."])
def test_the_averaged_vit_of_two_is_used(average: str, tmp_path: Path) -> None:
    one, two = (foreign.perturb(TimmViT(**SIZES, num_classes=5), seed) for seed in (1, 2))
    state = {f"model.{name}": value for name, value in one.state_dict().items()}
    state |= {average + name: value for name, value in two.state_dict().items()}
    model, report = load_pretrained(lightning(tmp_path / "a.ckpt", state))
    assert report.fresh == ()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), two(x), rtol=0, atol=1e-5)


def test_a_file_with_several_vits_is_rejected(tmp_path: Path) -> None:
    vit = TimmViT(**SIZES).state_dict()
    state = {f"{start}.{name}": value for start in ("left", "right") for name, value in vit.items()}
    with pytest.raises(UserError, match=r"a\.ckpt: .*holds 2 ViTs, under left\., right\.; save"):
        load_pretrained(lightning(tmp_path / "a.ckpt", state))


def test_an_unexpected_tensor_in_the_vit_is_an_error(tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in TimmViT(**SIZES).state_dict().items()}
    state["model.gate.weight"] = torch.ones(3)
    with pytest.raises(UserError, match=r"1 unexpected tensor: gate\.weight"):
        load_pretrained(lightning(tmp_path / "a.ckpt", state))
