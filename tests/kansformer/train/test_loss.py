"""The loss is torch's, with class weights, timm's mixing and distillation from a teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kansformer.checkpoint import TrainedModel, load_model
from kansformer.data import Preprocessing
from kansformer.errors import UserError
from kansformer.train.config import TrainConfig
from kansformer.train.loss import Criterion, as_teacher, class_weights, make_mix
from kansformer.train.run_folder import checksum
from kansformer.train.step import seed_step
from models.vit_model import create_model
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import do, final


def test_loss_is_torchs_with_smoothing_and_class_weights() -> None:
    logits, labels = torch.randn(9, 3), torch.tensor([0, 1, 2, 0, 0, 0, 1, 2, 2])
    images = torch.zeros(9, 1, 1, 1)
    weights = class_weights(labels.numpy(), 3)
    assert torch.allclose(weights[labels].mean(), torch.ones(()))
    assert torch.allclose(weights * torch.bincount(labels), torch.full((3,), 3.0))
    for smoothing in (0.0, 0.2):
        ours = Criterion(smoothing)(logits, labels, images)
        torch.testing.assert_close(
            ours.mean(), nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels)
        )
    plain, weighted = Criterion()(logits, labels, images), Criterion(0, weights)(
        logits, labels, images
    )  # fmt: skip
    torch.testing.assert_close(weighted, plain * weights[labels])
    mixed = F.one_hot(labels, 3).float().roll(1, 0) * 0.5 + F.one_hot(labels, 3) * 0.5
    expected = -(mixed * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(Criterion(0.2)(logits, mixed, images), expected)


def test_a_class_without_training_pictures_has_a_finite_weight() -> None:
    assert class_weights(np.array([0, 0, 2]), 3).isfinite().all()


def test_distillation_is_hintons() -> None:
    logits, theirs = torch.randn(5, 4), torch.randn(5, 4)
    labels, images = torch.tensor([0, 1, 2, 3, 0]), torch.zeros(5, 1, 1, 1)
    temperature, a = 3.0, 0.7
    loss = Criterion(0.1, None, lambda x: theirs, a, temperature)(logits, labels, images).mean()
    soft = nn.KLDivLoss(reduction="batchmean")(
        (logits / temperature).log_softmax(-1), (theirs / temperature).softmax(-1)
    )
    hard = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(loss, (1 - a) * hard + a * temperature**2 * soft)
    none = Criterion(0.1, None, lambda x: theirs, 0.0, temperature)(logits, labels, images).mean()
    torch.testing.assert_close(none, hard)


def test_a_teacher_gets_its_normalization_and_answers_in_our_order() -> None:
    config = create_model("vit_micro_patch4_8", num_classes=3).config
    teacher = TrainedModel(config).eval()
    teacher.class_names = ("a", "b", "c")
    teacher.preprocessing = Preprocessing(8, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    pixels = torch.rand(2, 3, 8, 8)

    def normalized(preprocessing: Preprocessing) -> Tensor:
        mean, std = (
            torch.tensor(v).expand(3)[:, None, None] if isinstance(v, float) else
            torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std)
        )  # fmt: skip
        return (pixels - mean) / std

    ours = Preprocessing(8)
    logits = as_teacher(teacher, ["c", "a", "b"], ours)(normalized(ours))
    expected = teacher(normalized(teacher.preprocessing))[:, [2, 0, 1]]
    torch.testing.assert_close(logits, expected)
    larger = as_teacher(teacher, ["a", "b", "c"], Preprocessing(16))(torch.rand(2, 3, 16, 16))
    assert larger.shape == (2, 3)
    with pytest.raises(UserError, match="knows no class d"):
        as_teacher(teacher, ["a", "d"], ours)
    with pytest.raises(UserError, match="channels"):
        as_teacher(teacher, ["a", "b"], Preprocessing(8, 1))


def test_a_teacher_guides(tmp_path: Path, colors: Path, trained: Path) -> None:
    best = str(trained / "best.safetensors")
    settings = {"epochs": 2, "teacher": best, "teacher_weight": 1.0}
    do(tiny_settings(colors, tmp_path / "a", **settings))
    do(tiny_settings(colors, tmp_path / "b", **settings, label_smoothing=0.9))
    # with all weight on the teacher, labels do not matter
    assert checksum(final(tmp_path / "a")) == checksum(final(tmp_path / "b"))
    info = load_model(tmp_path / "a" / "best.safetensors").training_info["settings"]
    assert "teacher" not in info, "a private path"


def sparse(config: TrainConfig) -> float:
    do(config)
    return sum(float(v.abs().sum()) for n, v in final(Path(str(config.output))).items()
               if n.endswith("spline_weight"))  # fmt: skip


def test_a_penalty_makes_splines_small(tmp_path: Path, colors: Path) -> None:
    sizes = [
        sparse(tiny_settings(colors, tmp_path / str(w), epochs=3, spline_penalty=w))
        for w in (0.0, 1e-3, 1e-1)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_mixing_is_timms_and_seeded() -> None:
    assert make_mix(tiny_settings("x", "y"), 3) is None
    mix = make_mix(tiny_settings("x", "y", mixup=0.8, label_smoothing=0.0), 3)
    x, y = torch.randn(8, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    seed_step(0, 1, 0)
    mixed, targets = mix(x.clone(), y)
    seed_step(0, 1, 0)
    again, _ = mix(x.clone(), y)
    seed_step(0, 2, 0)
    other, _ = mix(x.clone(), y)
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, other)
    assert not torch.equal(mixed, x)
    torch.testing.assert_close(targets.sum(-1), torch.ones(8))
    odd, targets = mix(x[:7].clone(), y[:7])
    assert torch.equal(odd, x[:7])
    assert torch.equal(targets, nn.functional.one_hot(y[:7], 3).float())
