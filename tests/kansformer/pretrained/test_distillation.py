"""Narrow KANs fitted to MLPs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kansformer.pretrained import distill, load_pretrained
from kansformer.pretrained.distillation import _through, _tokens
from tests.kansformer.pretrained import judges


def pictures(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        yield torch.randn(32, 3, 32, 32, generator=generator)


def test_the_fit_explains_held_out_pictures_and_changes_the_blocks_alone(tmp_path: Path) -> None:
    path = judges.timm_vit(tmp_path / "file.pth").path
    teacher, _ = load_pretrained(path)
    student, report = load_pretrained(path, ffn="kan", kan_hidden=24)
    assert report.left_out_mlps
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teachers = {name: value.clone() for name, value in teacher.state_dict().items()}
    first = distill(teacher, student, pictures(0), pictures(1), steps=3)
    found = distill(teacher, student, pictures(0), pictures(1), steps=150)
    assert found.pictures == 128
    assert len(found.r2) == 2
    for was, r2 in zip(first.r2, found.r2, strict=True):
        assert was < r2 <= 1
        assert r2 > 0.4
    for name, value in student.state_dict().items():
        fitted = ".mlp." in name and not name.endswith("fc2.grid")  # behind a norm, on its grid
        assert torch.equal(value, before[name]) != fitted, name
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, teachers[name])

    # R² is what it says: of the fitted block, on held-out tokens
    tokens = _tokens(teacher, pictures(1), 10**9)
    x, y = _through(teacher.blocks[0], tokens)
    with torch.no_grad():
        error = student.blocks[0].mlp(x) - y
    r2 = 1 - error.square().sum() / (y - y.mean(0)).square().sum()
    assert found.r2[0] == pytest.approx(float(r2), abs=1e-4)


def test_tokens_go_through_the_teachers_blocks(tmp_path: Path) -> None:
    teacher, _ = load_pretrained(judges.timm_vit(tmp_path / "file.pth", init_values=0.3).path)
    batch = next(pictures(3))
    tokens = _tokens(teacher, [batch], 1)
    for block in teacher.blocks:
        _through(block, tokens)
    torch.testing.assert_close(teacher.norm(tokens), teacher.forward_features(batch))


def test_a_narrow_kan_has_the_mlps_size_unless_said(tmp_path: Path) -> None:
    path = judges.timm_vit(tmp_path / "file.pth").path
    mlp, _ = load_pretrained(path)
    for changes in ({}, {"grid_size": 12}, {"spline_order": 1}):
        kan, report = load_pretrained(path, ffn="kan", **changes)
        sizes = [sum(p.numel() for p in model.parameters()) for model in (mlp, kan)]
        assert abs(sizes[1] / sizes[0] - 1) < 0.02
        assert any("fresh until they are fitted" in note for note in report.notes)


def test_a_block_that_does_nothing_is_fitted_too(tmp_path: Path) -> None:
    path = judges.timm_vit(tmp_path / "file.pth").path
    teacher, _ = load_pretrained(path)
    torch.nn.init.zeros_(teacher.blocks[0].mlp.fc2.weight)
    student, _ = load_pretrained(path, ffn="kan", kan_hidden=8)
    distill(teacher, student, pictures(0), pictures(1), steps=3)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
