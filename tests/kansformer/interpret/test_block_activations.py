"""What is recorded is what flows, and units are told by the pictures that excite them."""

import pytest
import torch

from kansformer.interpret.block_activations import block_records, record, tokens_that_matter
from kansformer.interpret.block_pruning import without_splines
from kansformer.interpret.block_scores import layer_facts, score_block, strongest
from kansformer.interpret.units import unit_use
from tests.kansformer.interpret.test_edges import vit


def test_records_reproduce_the_block() -> None:
    model = vit().train()
    pictures = torch.randn(10, 3, 8, 8)
    records = record(model, pictures.split(4), tokens=3)
    assert model.training
    model.eval()
    assert [len(own.inputs) for own in records] == [30, 10]  # only the class token matters at last
    for block, own in enumerate(records):
        ffn = model.get_submodule(f"blocks.{block}.mlp")
        torch.testing.assert_close(ffn(own.inputs), own.outputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ffn.norm(ffn.fc1(own.inputs)), own.hidden, rtol=1e-4, atol=1e-5)


def test_the_other_tokens_of_the_last_block_change_nothing() -> None:
    for pool in ("token", "avg"):
        model = vit(pool=pool, reg_tokens=1)
        x = torch.randn(2, 3, 8, 8)
        before = model(x)
        tokens = tokens_that_matter(model.config, 1)

        def disturb(
            module: object, args: object, out: torch.Tensor, kept: slice = tokens
        ) -> object:
            noise = torch.randn_like(out)
            noise[:, kept] = 0
            return out + noise

        handle = model.get_submodule("blocks.1.mlp").register_forward_hook(disturb)
        torch.testing.assert_close(model(x), before)
        handle.remove()
        assert tokens_that_matter(model.config, 0) == slice(None)


def test_a_unit_score_is_the_error_of_replacing_it_by_its_mean() -> None:
    model = vit(kan_hidden=5)
    own = record(model, [torch.randn(40, 3, 8, 8)])[0]
    scores = score_block(model, 0, own)
    fc2 = model.get_submodule("blocks.0.mlp.fc2")
    for unit in range(5):
        column = [fc2.base_weight[:, unit].clone(), fc2.spline_weight[:, unit].clone()]
        full = fc2(own.hidden)
        with torch.no_grad():
            fc2.base_weight[:, unit] = 0
            fc2.spline_weight[:, unit] = 0
        gone = full - fc2(own.hidden)
        with torch.no_grad():
            fc2.base_weight[:, unit], fc2.spline_weight[:, unit] = column
        error = (gone - gone.mean(dim=0)).square().sum(dim=1).sum() / (len(gone) - 1)
        torch.testing.assert_close(scores.units[unit] ** 2, error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ffn", ["kan", "group-kan", "mlp"])
def test_facts_of_layers(ffn: str) -> None:
    model = vit(ffn=ffn)
    own = record(model, [torch.randn(40, 3, 8, 8)])[0]
    facts = layer_facts(model, 0, "fc1", own.inputs)
    bare = layer_facts(without_splines(model), 0, "fc1", own.inputs)
    assert bare.spline_energy == 0
    if ffn == "mlp":
        assert (facts.outside, facts.spline_energy) == (None, 0)
    else:
        assert 0 < facts.spline_energy < 1
        low, high = model.config.grid_range
        outside = ((own.inputs < low) | (own.inputs > high)).float().mean()
        assert facts.outside == pytest.approx(float(outside))


def test_strongest_edges_in_order() -> None:
    scores = torch.tensor([[5.0, 4.0, 1.0], [3.0, 2.0, 0.0]])
    assert strongest(scores, 3) == [(0, 0), (0, 1), (1, 0)]
    assert strongest(scores, 3, apart=True) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_units_by_class_and_picture(dtype: torch.dtype) -> None:
    model = vit(kan_hidden=6)
    pictures = torch.randn(12, 3, 8, 8)
    labels = (torch.arange(12) % 2).to(dtype)  # the third class has no pictures
    use = unit_use(model, zip(pictures.split(5), labels.split(5), strict=True), top=4)
    for block, own in enumerate(use):
        hidden = block_records(model, pictures)[block].hidden
        hidden = hidden[:, 1:] if block == 0 else hidden[:, :1]
        for unit in range(6):
            by_picture = hidden[..., unit].amax(dim=1)
            best = by_picture.argsort(descending=True)[:4]
            assert own.pictures[unit].tolist() == best.tolist()
            torch.testing.assert_close(own.values[unit], by_picture[best])
            patch = int(own.patches[unit, 0])
            if block == 0:
                assert hidden[best[0], patch, unit] == by_picture.max()
            else:
                assert patch == -1
            for label in (0, 1):
                mean = hidden[labels == label][..., unit].mean()
                torch.testing.assert_close(own.class_means[label, unit], mean)
        assert own.class_means[2].isnan().all()
