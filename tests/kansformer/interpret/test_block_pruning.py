"""Masked equals removed; refitting reduces the error; saved models load unchanged."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kansformer.checkpoint import load_model, save_model
from kansformer.data import Preprocessing
from kansformer.interpret.block_activations import record
from kansformer.interpret.block_pruning import (
    compact,
    refit,
    remove_edges,
    removed_share,
    strongest_units,
    without_splines,
)
from kansformer.interpret.block_refinement import refine_blocks
from kansformer.interpret.block_scores import score_block
from kansformer.interpret.cost import ffn_cost, ffn_speedup
from kansformer.pretrained import load_pretrained
from models.twins import count_parameters, mlp_twin
from models.vit_model import VisionTransformer
from tests.kansformer.interpret.test_edges import vit

PICTURES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def halves(model: VisionTransformer) -> list[Tensor]:
    records = record(model, [PICTURES])
    scores = [score_block(model, block, recorded) for block, recorded in enumerate(records)]
    return strongest_units(model.config, scores, 0.5)


class MaskedNorm(nn.Module):
    """LayerNorm over the units of a mask; the others become zero."""

    def __init__(self, norm: nn.LayerNorm, mask: Tensor) -> None:
        super().__init__()
        self.norm, self.mask = norm, mask

    def forward(self, h: Tensor) -> Tensor:
        count = self.mask.sum()
        mean = (h * self.mask).sum(dim=-1, keepdim=True) / count
        variance = ((h - mean).square() * self.mask).sum(dim=-1, keepdim=True) / count
        normal = (h - mean) / (variance + self.norm.eps).sqrt()
        return (normal * self.norm.weight + self.norm.bias) * self.mask


@torch.no_grad()
def masked(model: VisionTransformer, kept: list[Tensor]) -> VisionTransformer:
    """The full-size model, with units outside `kept` masked in the norm and second layer."""
    for block, units in enumerate(kept):
        ffn = model.get_submodule(f"blocks.{block}.mlp")
        mask = torch.zeros(model.config.block_widths[block])
        mask[units] = 1
        for name in ("base_weight", "spline_weight", "weight"):
            weight = getattr(ffn.fc2, name, None)
            if weight is not None and weight.ndim > 1 and weight.shape[1] == len(mask):
                weight[:, mask == 0] = 0
        if isinstance(ffn.norm, nn.LayerNorm):
            ffn.norm = MaskedNorm(ffn.norm, mask)
    return model


def test_masked_equals_removed(model: VisionTransformer) -> None:
    kept = halves(model)
    smaller = compact(model, [units.to(torch.uint8) for units in kept])  # any integers will do
    assert smaller.config.hidden_widths == tuple(width // 2 for width in model.config.block_widths)
    assert count_parameters(smaller) < count_parameters(model)
    before = smaller(PICTURES)
    torch.testing.assert_close(before, masked(model, kept)(PICTURES), rtol=1e-5, atol=1e-5)


def test_keeping_all_changes_nothing(model: VisionTransformer) -> None:
    kept = [torch.arange(width) for width in model.config.block_widths]
    torch.testing.assert_close(compact(model, kept)(PICTURES), model(PICTURES))


def test_a_refit_reduces_the_error_of_the_blocks(model: VisionTransformer) -> None:
    records = record(model, [PICTURES], tokens=99)
    smaller = compact(model, halves(model))
    fitted = refit(smaller, records)
    for block, recorded in enumerate(records):
        name = f"blocks.{block}.mlp"
        errors = [
            (changed.get_submodule(name)(recorded.inputs) - recorded.outputs).square().mean().item()
            for changed in (smaller, fitted)
        ]
        assert errors[1] < 0.8 * errors[0]


def test_a_refit_of_an_unpruned_model_keeps_its_outputs(model: VisionTransformer) -> None:
    records = record(model, [PICTURES])
    torch.testing.assert_close(
        refit(model, records)(PICTURES), model(PICTURES), rtol=1e-3, atol=1e-3
    )


def test_files_keep_widths_and_grids(model: VisionTransformer, tmp_path: Path) -> None:
    smaller = compact(model, halves(model))
    if model.config.ffn != "mlp":
        smaller = refine_blocks(smaller, 2 * model.config.grid_size, [1])
    names = ("a", "b", "c")
    save_model(tmp_path / "small.safetensors", smaller, Preprocessing(8), names)
    expected = smaller(PICTURES)
    again = load_model(tmp_path / "small.safetensors")
    assert again.config == smaller.config
    torch.testing.assert_close(again(PICTURES), expected)
    started, _ = load_pretrained(tmp_path / "small.safetensors")
    torch.testing.assert_close(started(PICTURES), expected)
    assert mlp_twin(again.config).block_widths == mlp_twin(model.config).block_widths


def test_removed_edges_are_the_weak_ones(model: VisionTransformer) -> None:
    records = record(model, [PICTURES])
    scores = [score_block(model, block, recorded) for block, recorded in enumerate(records)]
    cut = remove_edges(model, scores, 0.25)
    assert removed_share(model) == 0
    assert removed_share(cut) == pytest.approx(0.75, abs=0.01)
    after = score_block(cut, 0, records[0])
    dead = after.second < 1e-10
    assert scores[0].second[dead].max() <= scores[0].second[~dead].min()


def test_without_splines_only_bases_are_left() -> None:
    model = vit(ffn="group-kan", groups=4)
    bare = without_splines(model)
    ffn = bare.get_submodule("blocks.0.mlp")
    x = torch.randn(7, 16)
    expected = nn.functional.gelu(x @ ffn.fc1.weight.T + ffn.fc1.bias) @ ffn.fc2.weight.T
    torch.testing.assert_close(ffn(x), expected + ffn.fc2.bias, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(PICTURES), bare(PICTURES), atol=1e-3)


def test_cost_of_half_the_units() -> None:
    model = vit(ffn="mlp", mlp_ratio=2.0)
    smaller = compact(model, halves(model))
    before, after = ffn_cost(model), ffn_cost(smaller)
    assert before.flops == 2 * 2 * 2 * 16 * 32  # blocks, layers, per multiply-add
    assert after.flops == before.flops // 2
    assert before.parameters == 2 * (2 * 16 * 32 + 16 + 32)
    threads = torch.get_num_threads()
    assert ffn_speedup(model, smaller, rounds=1) > 0
    assert torch.get_num_threads() == threads


def test_units_that_cannot_be_kept_are_rejected() -> None:
    model = vit(ffn="group-kan", groups=4, mlp_ratio=2.0)
    whole = torch.arange(32)
    for kept in ([whole], [whole, torch.tensor([5, 3])], [whole, torch.tensor([1, 40])],
                 [whole, torch.arange(8)]):  # fmt: skip
        with pytest.raises(ValueError, match=r"units|group"):
            compact(model, kept)
    with pytest.raises(ValueError, match="share"):
        strongest_units(model.config, [], 0.0)
