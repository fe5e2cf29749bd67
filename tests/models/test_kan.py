"""KANLinear against the formula written out, and the laws of its grid."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.engine import blocks
from models.kan import KAN, KANFeedForward, KANLinear, gain
from tests.models.test_splines import knots_of, places, scipy_basis


def textbook(x: Tensor, state: dict[str, Tensor], order: int) -> Tensor:
    """efficient-kan's layer as its formula says, by the Cox-de Boor recursion in float64."""
    x = x.double()
    t = state["grid"].double()
    last = t.shape[1] - 2
    columns = [
        ((x >= t[:, j]) & ((x < t[:, j + 1]) | ((j == last) & (x == t[:, j + 1])))).double()
        for j in range(t.shape[1] - 1)
    ]
    for degree in range(1, order + 1):
        columns = [
            (x - t[:, j]) / (t[:, j + degree] - t[:, j]) * columns[j]
            + (t[:, j + degree + 1] - x) / (t[:, j + degree + 1] - t[:, j + 1]) * columns[j + 1]
            for j in range(len(columns) - 1)
        ]
    basis = torch.stack(columns, dim=-1)  # (N, in, G + k)
    weight = state["spline_weight"].double()
    if "spline_scaler" in state:
        weight = weight * state["spline_scaler"].double()[..., None]
    y = F.silu(x) @ state["base_weight"].double().T
    return y + torch.einsum("nij,oij->no", basis, weight)


def efficient_kan_state(
    in_features: int, out_features: int, grid_size: int, order: int, scaler: bool = True
) -> dict[str, Tensor]:
    """Tensors named and shaped as efficient-kan's KANLinear saves them."""
    h = 2 / grid_size
    grid = torch.arange(-order, grid_size + order + 1) * h - 1
    state = {
        "base_weight": torch.randn(out_features, in_features) / in_features**0.5,
        "spline_weight": torch.randn(out_features, in_features, grid_size + order) * 0.1,
        "grid": grid.expand(in_features, -1).contiguous(),
    }
    if scaler:
        state["spline_scaler"] = torch.randn(out_features, in_features)
    return state


@pytest.mark.parametrize("scaler", [True, False])
@pytest.mark.parametrize(("grid_size", "order"), [(5, 3), (1, 0), (3, 1), (8, 2), (20, 4), (4, 5)])
def test_efficient_kan_state_loads_and_gives_the_same(
    grid_size: int, order: int, scaler: bool
) -> None:
    state = efficient_kan_state(7, 4, grid_size, order, scaler)
    layer = KANLinear(
        7, 4, grid_size=grid_size, spline_order=order, enable_standalone_scale_spline=scaler
    )
    layer.load_state_dict(state, strict=True)
    even = torch.linspace(-4, 4, 81)[:, None].expand(-1, 7)
    x = torch.cat([torch.randn(200, 7) * 1.5, even, state["grid"].T])
    torch.testing.assert_close(layer(x).double(), textbook(x, state, order), rtol=1e-6, atol=1e-6)
    exact = layer.double()(x.double())
    torch.testing.assert_close(exact, textbook(x, state, order), rtol=0, atol=1e-12)


def test_efficient_kan_network_loads() -> None:
    state = {
        f"layers.{i}.{name}": value
        for i, (a, b) in enumerate([(3, 8), (8, 2)])
        for name, value in efficient_kan_state(a, b, 5, 3).items()
    }
    network = KAN([3, 8, 2])
    network.load_state_dict(state, strict=True)
    x = torch.randn(50, 3)
    expected = x
    for i in range(2):
        layer = {k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"layers.{i}.")}
        expected = textbook(expected, layer, 3)
    torch.testing.assert_close(network(x).double(), expected, rtol=0, atol=1e-6)


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    out=st.integers(1, 4),
    bias=st.booleans(),
    order=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_any_leading_dimensions(shape: list[int], out: int, bias: bool, order: int) -> None:
    layer = KANLinear(3, out, bias=bias, spline_order=order)
    x = torch.randn(*shape, 3)
    y = layer(x)
    assert y.shape == (*shape, out)
    torch.testing.assert_close(y.reshape(-1, out), layer(x.reshape(-1, 3)))


def irregular_layer(
    in_features: int, out_features: int, order: int, **options: object
) -> KANLinear:
    """A float64 layer on knots of its own for each feature."""
    layer = KANLinear(in_features, out_features, spline_order=order, **options).double()
    gaps = 0.1 + torch.rand(in_features, layer.grid.shape[1], dtype=torch.float64)
    layer.grid.copy_(gaps.cumsum(dim=-1) - gaps.sum(dim=-1, keepdim=True) / 2)
    return layer


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("grid_size", [1, 5, 50, 100])
@pytest.mark.parametrize("kind", ["uniform", "uneven"])
@torch.no_grad()
def test_forward_computes_scipys_basis(order: int, grid_size: int, kind: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        knots = knots_of(kind, grid_size, order).to(dtype)
        layer = KANLinear(
            1, grid_size + order, grid_size=grid_size, spline_order=order, scale_base=0.0
        ).to(dtype)
        layer.grid.copy_(knots)
        layer.spline_weight.copy_(torch.eye(grid_size + order)[:, None])
        layer.spline_scaler.fill_(1)
        x = places(knots).to(dtype)
        expected = scipy_basis(x.double().numpy(), knots.double().numpy(), order)
        np.testing.assert_allclose(layer(x[:, None]).numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", range(6))
def test_gradients(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = irregular_layer(3, 2, order, bias=True)
    monkeypatch.setattr(blocks, "BLOCK_FEATURES", 1)  # several blocks
    monkeypatch.setattr(blocks, "BLOCK_ROWS", (1, 2))
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(run, (x, *parameters.values()))
    layer(x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in parameters.values())


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        KANLinear(0, 3)
    with pytest.raises(ValueError, match="grid_range"):
        KANLinear(3, 3, grid_range=(1, 1))
    with pytest.raises(ValueError, match="last dimension"):
        KANLinear(3, 3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="two widths"):
        KAN([3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_basis_stays_in_float32_in_16_bit_autocast(dtype: torch.dtype) -> None:
    layer = KANLinear(16, 8, grid_size=50, scale_base=0.0)
    nn.init.normal_(layer.spline_weight)
    x = torch.rand(64, 16) * 2 - 1
    with torch.autocast("cpu", dtype):
        assert layer.b_splines(x).dtype == torch.float32
        half = layer(x)
    assert half.dtype == dtype
    whole = layer(x)
    assert float((half - whole).detach().norm() / whole.detach().norm()) < 0.01


# ---- initialization ----


@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU, nn.Tanh, nn.Identity])
@torch.no_grad()
def test_variance_is_kept_through_twelve_layers(activation: type[nn.Module]) -> None:
    x = torch.randn(2000, 256)
    for layer in KAN([256] * 13, base_activation=activation, grid_range=(-3, 3)).layers:
        y = layer(x)
        ratio = float(y.var() / x.var())
        assert 0.6 < ratio < 1.6, ratio
        x = y
    assert 0.3 < float(x.var()) < 3


def test_gain_of_known_activations() -> None:
    assert gain(nn.Identity()) == pytest.approx(1)
    assert gain(nn.ReLU()) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("scaler", [True, False])
@torch.no_grad()
def test_a_larger_scale_gives_larger_weights(scaler: bool) -> None:
    def sizes(**scales: float) -> tuple[float, float]:
        torch.manual_seed(0)
        layer = KANLinear(64, 64, enable_standalone_scale_spline=scaler, **scales)
        return float(layer.base_weight.std()), float(layer.scaled_spline_weight.std())

    base, spline = sizes()
    assert sizes(scale_base=2.0) == pytest.approx((2 * base, spline), rel=1e-5)
    assert sizes(scale_spline=2.0) == pytest.approx((base, 2 * spline), rel=1e-5)
    assert sizes(scale_noise=0.2) == pytest.approx((base, 2 * spline), rel=1e-5)
    torch.manual_seed(0)
    assert KANLinear(3, 3, scale_base=0.0, scale_spline=0.0)(torch.randn(4, 3)).abs().max() == 0


# ---- the rest ----


def random_layer(grid_size: int = 5, order: int = 3) -> KANLinear:
    layer = KANLinear(3, 4, grid_size=grid_size, spline_order=order, grid_range=(-2, 2))
    with torch.no_grad():
        layer.spline_weight.normal_()
        layer.spline_scaler.uniform_(-2, 2)
    return layer


@pytest.mark.parametrize("scaler", [True, False])
def test_efficient_kans_start(scaler: bool) -> None:
    """kaiming_uniform_(a=√5) is U(±1/√in); splines are noise of ±scale_noise / 2G at the knots."""
    layer = KANLinear(
        64, 200, grid_size=4, enable_standalone_scale_spline=scaler, init="efficient-kan"
    )
    weights = [layer.base_weight, *([layer.spline_scaler] if scaler else [])]
    for weight in weights:
        assert 0.99 / 8 < float(weight.detach().abs().max()) <= 1 / 8
        assert float(weight.detach().std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.02)
    knots = layer.grid[:, 3:8].T
    values = torch.einsum("nij,oij->nio", layer.b_splines(knots), layer.spline_weight.detach())
    assert 0.99 < float(values.abs().max() / (0.1 / 2 / 4)) < 1.001
    with pytest.raises(ValueError, match="init"):
        KANLinear(2, 3, init="other")


def test_curve2coeff_inverts_the_spline_in_any_dimensions() -> None:
    layer = random_layer().double()
    x = torch.rand(6, 50, 3, dtype=torch.float64) * 4 - 2
    curves = torch.einsum("abij,oij->abio", layer.b_splines(x), layer.spline_weight)
    torch.testing.assert_close(layer.curve2coeff(x, curves), layer.spline_weight.detach())
    with pytest.raises(ValueError, match="shape"):
        layer.curve2coeff(x, curves[..., :2])


def test_regularization_is_finite_and_counts_the_scaler() -> None:
    layer = random_layer()
    with torch.no_grad():
        layer.spline_weight[0, 0] = 0
        layer.spline_scaler[1, 1] = 0
    loss = layer.regularization_loss()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in (layer.spline_weight, layer.spline_scaler))

    size = layer.scaled_spline_weight.detach().abs().mean(-1).double()
    share = (size / size.sum()).flatten()
    entropy = -sum(float(p) * np.log(float(p)) for p in share if p > 0)
    assert loss.item() == pytest.approx(float(size.sum()) + entropy, rel=1e-5)

    with torch.no_grad():
        layer.spline_weight.zero_()
        layer.zero_grad()
    layer.regularization_loss().backward()
    assert layer.spline_weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_regularization_is_finite_in_16_bits(dtype: torch.dtype) -> None:
    layer = KANLinear(192, 64)
    expected = layer.regularization_loss()
    loss = copy.deepcopy(layer).to(dtype).regularization_loss()
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    with torch.autocast("cpu", dtype):
        loss = layer.activation_regularization_loss(30 * torch.randn(500, 192))
    loss.backward()
    assert loss.isfinite()
    assert layer.spline_weight.grad.isfinite().all()


def edge_outputs(layer: KANLinear, x: Tensor) -> Tensor:
    """Every edge's own output, (N, in, out), in float64."""
    layer = copy.deepcopy(layer).double()
    base = layer.base_activation(x.double())[..., None] * layer.base_weight.T
    return base + torch.einsum("nij,oij->nio", layer.b_splines(x), layer.scaled_spline_weight)


def test_edge_deviations_are_those_of_the_edges_outputs() -> None:
    layer = random_layer()
    x = torch.randn(7, 30, 3) * 2
    expected = edge_outputs(layer, x.reshape(-1, 3)).std(dim=0).T
    torch.testing.assert_close(layer.edge_deviations(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_activation_regularization_is_pykans() -> None:
    network = KAN([3, 4, 2])
    x = torch.randn(50, 3)
    expected, inputs = 0.0, x
    for layer in network.layers:  # as pykan 0.2.8 writes it, with a tensor of (N, in, out)
        outputs = edge_outputs(layer, inputs).detach().numpy()
        size = outputs.std(axis=0, ddof=1) / (inputs.numpy().std(axis=0, ddof=1)[:, None] + 0.1)
        size = size.T  # (out, in)
        by_output = size / (size.sum(axis=1, keepdims=True) + 1)
        by_input = size / (size.sum(axis=0, keepdims=True) + 1)
        entropy = -(by_output * np.log2(by_output + 1e-4)).sum(axis=1).mean()
        entropy -= (by_input * np.log2(by_input + 1e-4)).sum(axis=0).mean()
        expected += 0.5 * size.sum() + 2 * entropy
        inputs = layer(inputs).detach()
    loss = network.activation_regularization_loss(x, 0.5, 2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_activation_regularization_reaches_all_layers_and_survives_dead_edges() -> None:
    network = KAN([3, 4, 2])
    with torch.no_grad():
        network.layers[1].spline_scaler[0, 0] = network.layers[1].base_weight[0, 0] = 0
    network.activation_regularization_loss(torch.randn(50, 3)).backward()
    for layer in network.layers:
        for parameter in layer.parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any()
    constant = network.activation_regularization_loss(torch.ones(50, 3))
    constant.backward()
    assert constant.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@torch.no_grad()
def test_feed_forward_keeps_the_second_layers_inputs_on_its_grid() -> None:
    block = KANFeedForward(64, 16)
    inner = block.norm(block.fc1(torch.randn(1000, 64) * 5 + 3))
    low, high = block.fc2.grid[0, 3], block.fc2.grid[0, -4]
    assert float(((inner > low) & (inner < high)).float().mean()) > 0.98
    assert block(torch.randn(2, 7, 64)).shape == (2, 7, 64)
