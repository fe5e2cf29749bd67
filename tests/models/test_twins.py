"""Twins have equal sizes, counted without making them."""

from dataclasses import replace

import pytest

from models.twins import TOLERANCE, count, count_flops, count_parameters, matched, mlp_twin
from models.vit_model import VisionTransformer, create_model, model_config


@pytest.mark.parametrize("by", ["params", "flops"])
@pytest.mark.parametrize("ffn", ["kan", "group-kan", "mlp"])
@pytest.mark.parametrize("size", ["micro", "tiny", "base"])
def test_matched_models_are_as_large_as_their_twins(size: str, ffn: str, by: str) -> None:
    head = "kan" if size == "tiny" else "linear"
    config = model_config(f"vit_{size}_patch16_224", ffn=ffn, head=head, num_classes=10)
    found = matched(config, by)
    assert abs(count(found, by) / count(mlp_twin(config), by) - 1) <= TOLERANCE
    assert replace(found, kan_hidden=64, mlp_ratio=4) == replace(config, kan_hidden=64, mlp_ratio=4)


@pytest.mark.parametrize("ffn", ["kan", "group-kan", "mlp"])
def test_counts_are_those_of_the_model(ffn: str) -> None:
    config = model_config("vit_micro_patch8_16", ffn=ffn, num_classes=3)
    model = VisionTransformer(config)
    assert count(config, "params") == count_parameters(model)
    assert count(config, "flops") == count_flops(model)


def test_the_start_of_the_weights_changes_no_count() -> None:
    config = model_config("kansformer_micro_patch8_16", num_classes=3, head="kan")
    other = replace(config, kan_init="efficient-kan")
    assert matched(other, "params") == replace(matched(config, "params"), kan_init="efficient-kan")


def test_a_target_out_of_reach_is_said() -> None:
    config = model_config("kansformer_micro_patch8_16", num_classes=3)
    with pytest.raises(ValueError, match="no width of kan blocks gives 1,000 params"):
        matched(config, "params", target=1000)


def test_flops_are_those_of_the_matrix_products() -> None:
    model = create_model("vit_micro_patch4_8", num_classes=10, in_chans=1)
    n, d, depth = 5, 96, 4
    per_block = n * (3 * d * d + d * d + 8 * d * d) + 2 * n * n * d
    expected = 2 * (4 * 16 * d + depth * per_block + d * 10)
    assert count_flops(model) == expected
