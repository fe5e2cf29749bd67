"""Narrow KANs fitted to MLPs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kansformer.pretrained import distill, load_pretrained
from kansformer.pretrained.distillation import _advance, _embed
from tests.kansformer.pretrained import foreign


def pictures(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        yield torch.randn(32, 3, 32, 32, generator=generator)


def test_the_fit_generalizes_and_changes_only_the_blocks(tmp_path: Path) -> None:
    path = foreign.timm_vit(tmp_path / "file.pth").path
    teacher, _ = load_pretrained(path)
    student, report = load_pretrained(path, ffn="kan", kan_hidden=24)
    assert report.left_out_mlps
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teachers = {name: value.clone() for name, value in teacher.state_dict().items()}
    first = distill(teacher, student, pictures(0), pictures(1), steps=3)
    second = distill(teacher, student, pictures(0), pictures(1), steps=150)
    assert second.pictures == 128
    assert len(second.r2) == 2
    for before_r2, r2 in zip(first.r2, second.r2, strict=True):
        assert before_r2 < r2 <= 1
        assert r2 > 0.4
    for name, value in student.state_dict().items():
        fitted = ".mlp." in name and not name.endswith("fc2.grid")  # its input is normalized
        assert torch.equal(value, before[name]) != fitted, name
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, teachers[name])

    # the reported R² is that of the fitted block on held-out tokens
    tokens = _embed(teacher, pictures(1), 10**9)
    x, y = _advance(teacher.blocks[0], tokens)
    with torch.no_grad():
        error = student.blocks[0].mlp(x) - y
    r2 = 1 - error.square().sum() / (y - y.mean(0)).square().sum()
    assert second.r2[0] == pytest.approx(float(r2), abs=1e-4)


def test_tokens_pass_through_the_teachers_blocks(tmp_path: Path) -> None:
    teacher, _ = load_pretrained(foreign.timm_vit(tmp_path / "file.pth", init_values=0.3).path)
    batch = next(pictures(3))
    tokens = _embed(teacher, [batch], 1)
    for block in teacher.blocks:
        _advance(block, tokens)
    torch.testing.assert_close(teacher.norm(tokens), teacher.forward_features(batch))


def test_a_narrow_kan_has_the_mlps_size_by_default(tmp_path: Path) -> None:
    path = foreign.timm_vit(tmp_path / "file.pth").path
    mlp, _ = load_pretrained(path)
    for changes in ({}, {"grid_size": 12}, {"spline_order": 1}):
        kan, report = load_pretrained(path, ffn="kan", **changes)
        sizes = [sum(p.numel() for p in model.parameters()) for model in (mlp, kan)]
        assert abs(sizes[1] / sizes[0] - 1) < 0.02
        assert any("fresh until they are fitted" in note for note in report.notes)


def test_a_block_that_does_nothing_is_fitted_too(tmp_path: Path) -> None:
    path = foreign.timm_vit(tmp_path / "file.pth").path
    teacher, _ = load_pretrained(path)
    torch.nn.init.zeros_(teacher.blocks[0].mlp.fc2.weight)
    student, _ = load_pretrained(path, ffn="kan", kan_hidden=8)
    distill(teacher, student, pictures(0), pictures(1), steps=3)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
