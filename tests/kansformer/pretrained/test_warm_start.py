"""The exact warm start: KAN blocks compute what the pretrained MLPs do, and can be trained."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kansformer.checkpoint import save_model
from kansformer.data import load_data
from kansformer.data.preprocessing import Preprocessing
from kansformer.errors import UserError
from kansformer.pretrained import load_pretrained
from kansformer.train.optimizer import clip_gradients, make_optimizer, make_schedule
from models.kan import GroupKANLinear, KANLinear
from models.vit_model import VisionTransformer, create_model
from tests.conftest import tiny_settings
from tests.kansformer.pretrained import foreign
from tests.kansformer.pretrained.test_formats import CASES

WARM = {"group-kan": {}, "kan": {"kan_hidden": "full"}}


@pytest.mark.parametrize("ffn", WARM)
@pytest.mark.parametrize("name", [name for name in CASES if name != "vision_kansformer"])
@torch.no_grad()
def test_logits_are_the_librarys(name: str, ffn: str, tmp_path: Path) -> None:
    build, suffix, _, _ = CASES[name]
    reference = build(tmp_path / f"file.{suffix}")
    model, report = load_pretrained(reference.path, ffn=ffn, **{**reference.config, **WARM[ffn]})
    x = torch.randn(3, 3, 32, 32)
    differences = [(model.forward_features(x) - reference.features(x)).abs().max()]
    if reference.logits is not None:
        differences.append((model(x) - reference.logits(x)).abs().max())
    assert max(differences) < 1e-5
    assert sum(report.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert all("spline" in name or name.endswith("grid") for name in report.fresh)
    assert report.fresh
    assert not report.left_out_mlps


def spline_layers(model: VisionTransformer) -> dict[str, KANLinear | GroupKANLinear]:
    layers = KANLinear | GroupKANLinear
    return {n: module for n, module in model.named_modules() if isinstance(module, layers)}


@pytest.mark.parametrize("ffn", WARM)
def test_one_step_moves_every_spline(ffn: str, tmp_path: Path) -> None:
    path = foreign.timm_vit(tmp_path / "file.pth").path
    model, _ = load_pretrained(path, ffn=ffn, **WARM[ffn])
    optimizer = make_optimizer(model, tiny_settings("x", "y"))
    labels = torch.arange(16) % 5
    F.cross_entropy(model(torch.randn(16, 3, 32, 32)), labels).backward()
    optimizer.step()
    layers = spline_layers(model)
    assert len(layers) == 4
    for name, layer in layers.items():
        moved = (layer.spline_weight != 0).flatten(0, -2).any(dim=1)  # by spline
        assert moved.all(), name


def steps(model: VisionTransformer, pictures: Tensor, labels: Tensor, lr: float) -> list[float]:
    """The losses of a hundred steps as in train.py, on the same batches in every call."""
    config = tiny_settings("x", "y", lr=lr, epochs=5, warmup_epochs=1)
    optimizer = make_optimizer(model.train(), config)
    schedule = make_schedule(optimizer, config, steps_per_epoch=20)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(100):
        schedule.step_update(step)
        rows = torch.randint(len(labels), (64,), generator=generator)
        loss = F.cross_entropy(model(pictures[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model, config.clip_grad)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_hundred_steps_end_no_worse_than_with_mlps(tmp_path: Path) -> None:
    digits = load_data("digits").train
    preprocessing = Preprocessing(8, 1)
    pictures = torch.stack([preprocessing(digits.open(i)) for i in range(len(digits))])
    labels = torch.as_tensor(digits.labels)
    names = [str(digit) for digit in range(10)]
    small = {"embed_dim": 48, "depth": 2}
    first = create_model("vit_micro_patch2_8", in_chans=1, num_classes=10, **small)
    steps(first, pictures, labels, 1e-3)  # "pretrained", but far from converged
    save_model(tmp_path / "mlp.safetensors", first, preprocessing, names)
    ends = {}
    for ffn in ("mlp", *WARM):
        model, _ = load_pretrained(tmp_path / "mlp.safetensors", ffn=ffn, **WARM.get(ffn, {}))
        losses = steps(model, pictures, labels, 1e-3)
        ends[ffn] = sum(losses[-20:]) / 20
        assert ends[ffn] < 0.7 * losses[0]
    assert ends["group-kan"] <= ends["mlp"]
    assert ends["kan"] <= ends["mlp"]


def test_blocks_that_cannot_start_as_an_mlp_are_rejected(tmp_path: Path) -> None:
    path = foreign.timm_vit(tmp_path / "file.pth").path
    with pytest.raises(UserError, match="kan_norm=False"):
        load_pretrained(path, ffn="group-kan", kan_norm=True)
    with pytest.raises(UserError, match="5 groups"):
        load_pretrained(path, ffn="group-kan", groups=5)
    model = create_model("kansformer_micro_patch4_8", num_classes=2)
    save_model(tmp_path / "kan.safetensors", model, Preprocessing(8, 3), ["a", "b"])
    with pytest.raises(UserError, match="kan blocks cannot become group-kan blocks"):
        load_pretrained(tmp_path / "kan.safetensors", ffn="group-kan")


@pytest.mark.parametrize("ffn", WARM)
def test_a_kan_head_of_another_kind_is_fresh(ffn: str, tmp_path: Path) -> None:
    model = create_model("vit_micro_patch4_8", head="kan", num_classes=2)
    save_model(tmp_path / "mlp.safetensors", model, Preprocessing(8, 3), ["a", "b"])
    model, report = load_pretrained(tmp_path / "mlp.safetensors", ffn=ffn, **WARM[ffn])
    assert report.model["head.fc1.base_weight"].reason.startswith("a KAN head with another")
    assert sum(report.parameters.values()) == sum(p.numel() for p in model.parameters())
