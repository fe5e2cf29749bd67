"""Contributions of edges sum to the layer's outputs, and curves equal the edges' functions."""

import pytest
import torch
from torch import Tensor, nn

from kansformer.interpret.edges import (
    EdgeLayer,
    edge_deviations,
    edge_function,
    edge_layer,
    group_functions,
    input_contributions,
    output_contributions,
    outside_grid,
    split_output,
)
from models.kan import GroupKANLinear, KANLinear
from models.vit_model import VisionTransformer, create_model


def trained_like(layer: EdgeLayer) -> EdgeLayer:
    """The layer with noise on every parameter, including splines."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


LAYERS = {
    "kan": lambda: KANLinear(8, 5, grid_range=(-3, 3)),
    "kan, bias": lambda: KANLinear(8, 5, grid_size=3, spline_order=2, bias=True),
    "kan, no scaler": lambda: KANLinear(8, 5, enable_standalone_scale_spline=False),
    "group": lambda: GroupKANLinear(8, 5, groups=4, base_activation=nn.GELU),
    "mlp": lambda: nn.Linear(8, 5),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request: pytest.FixtureRequest) -> EdgeLayer:
    return trained_like(request.param())


@pytest.fixture
def x() -> Tensor:
    return 2 * torch.randn(300, 8)


def test_contributions_sum_to_the_output(layer: EdgeLayer, x: Tensor) -> None:
    y = layer(x)
    bias = torch.zeros(5) if layer.bias is None else layer.bias
    for output in range(5):
        total = output_contributions(layer, x, output).sum(dim=1) + bias[output]
        torch.testing.assert_close(total, y[:, output], rtol=1e-5, atol=1e-5)
    total = sum(input_contributions(layer, x, source) for source in range(8)) + bias
    torch.testing.assert_close(total, y, rtol=1e-5, atol=1e-5)
    base, spline = split_output(layer, x)
    torch.testing.assert_close(base + spline + bias, y, rtol=1e-5, atol=1e-5)


def test_a_contribution_changes_as_the_output_does(layer: EdgeLayer, x: Tensor) -> None:
    moved = x.clone()
    moved[:, 3] += 0.7
    change = input_contributions(layer, moved, 3) - input_contributions(layer, x, 3)
    torch.testing.assert_close(change, layer(moved) - layer(x), rtol=1e-5, atol=2e-5)


def test_deviations_equal_those_of_contributions(layer: EdgeLayer, x: Tensor) -> None:
    deviations = edge_deviations(layer, x)
    for output in range(5):
        expected = output_contributions(layer, x, output).std(dim=0)
        torch.testing.assert_close(deviations[output], expected, rtol=1e-4, atol=1e-5)


def test_share_outside_the_grid() -> None:
    kan = KANLinear(2, 1, grid_range=(-1, 1))
    assert outside_grid(kan, torch.tensor([[0.0, 2.0], [1.0, -1.5], [0.3, 0.9]])) == pytest.approx(
        2 / 6
    )
    assert outside_grid(nn.Linear(2, 1), torch.zeros(3, 2)) is None


def vit(**config: object) -> VisionTransformer:
    """A small ViT with noise on every parameter of its blocks' layers."""
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = create_model("kansformer_micro", num_classes=3, **{**sizes, **config})
    for block in range(2):
        for name in ("fc1", "fc2"):
            trained_like(edge_layer(model, block, name))
    return model.eval()


def test_an_edge_function_equals_the_edge() -> None:
    model = vit(kan_hidden=6)
    inputs = torch.randn(500, 16)
    curve = edge_function(model, 1, "fc1", 4, 11, inputs)
    layer = edge_layer(model, 1, "fc1")
    x = torch.zeros(len(curve.x), 16)
    x[:, 11] = curve.x
    expected = layer(x)[:, 4] - layer(torch.zeros(1, 16))[0, 4]
    zero = output_contributions(layer, torch.zeros(1, 16), 4)[0, 11]
    torch.testing.assert_close(curve.y, expected + zero, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(curve.base + curve.spline, curve.y)
    assert curve.counts.sum() >= 498  # 99.9 % of the inputs, rounded
    assert curve.grid == pytest.approx((-3, 3))
    assert curve.outside == pytest.approx(float((inputs[:, 11].abs() > 3).float().mean()))


def test_group_functions_are_what_their_weights_multiply() -> None:
    model = vit(ffn="group-kan", groups=4)
    layer = edge_layer(model, 0, "fc2")
    assert isinstance(layer, GroupKANLinear)
    curve = group_functions(model, 0, "fc2", torch.randn(50, 64))[2]
    channel = 2 * 16 + 5
    x = torch.zeros(len(curve.x), 64)
    x[:, channel] = curve.x
    expected = input_contributions(layer, x, channel)[:, 0]
    torch.testing.assert_close(curve.y * layer.weight[0, channel], expected, rtol=1e-4, atol=1e-5)


def test_unknown_layers_and_edges_are_rejected() -> None:
    with pytest.raises(ValueError, match="no layer 'fc3'"):
        edge_layer(vit(), 0, "fc3")
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        edge_layer(vit(), 2, "fc1")
    with pytest.raises(ValueError, match="no edge"):
        edge_function(vit(), 0, "fc1", 99, 0, torch.zeros(9, 16))
    with pytest.raises(ValueError, match="straight lines"):
        edge_function(vit(ffn="mlp"), 0, "fc1", 0, 0, torch.zeros(9, 16))
    with pytest.raises(ValueError, match="not a group-kan"):
        group_functions(vit(), 0, "fc1", torch.zeros(9, 16))
