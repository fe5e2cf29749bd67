"""GroupKANLinear: scipy's splines before a dense layer, the same in every way to run it."""

import copy
import pickle
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from models import splines
from models.engine import blocks, eager, inductor
from models.engine.cpp import kernels
from models.kan import GroupKANLinear
from models.kan_grid import calibrate_grid, refine_grid
from models.vit_model import create_model
from tests.models.engine.test_operators import needs_compiler

ACTIVATIONS = [nn.Identity, nn.GELU, nn.SiLU, nn.Softplus]  # one has no kernel


def random_layer(*sizes: int, uneven: bool = False, **options: object) -> GroupKANLinear:
    """With splines as large as the base, and knots of its own for each group."""
    layer = GroupKANLinear(*sizes, **options)
    nn.init.normal_(layer.spline_weight)
    if uneven:
        gaps = 0.2 + torch.rand(layer.grid.shape)
        layer.grid.copy_(8 * gaps.cumsum(dim=1) / gaps.sum(dim=1, keepdim=True) - 4)
    return layer


def scipys(layer: GroupKANLinear, x: Tensor) -> Tensor:
    """The definition in float64: scipy's splines, tapering beyond the grid, then the product."""
    order, width = layer.spline_order, layer.in_features // layer.groups
    functions = []
    for channel, column in enumerate(x.double().unbind(-1)):
        knots = layer.grid[channel // width].double().numpy()
        padded = np.r_[
            knots[0] - 1 - np.arange(order)[::-1], knots, knots[-1] + 1 + np.arange(order)
        ]
        inner = layer.spline_weight[channel // width].detach().double().numpy()
        spline = BSpline(padded, np.r_[np.zeros(order), inner, np.zeros(order)], order)
        place = column.numpy()
        inside = (place >= knots[0]) & (place <= knots[-1])
        value = np.where(inside, spline(place.clip(knots[0], knots[-1])), 0)
        functions.append(layer.base_activation(column) + torch.from_numpy(value))
    y = torch.stack(functions, dim=-1) @ layer.weight.detach().double().T
    return y if layer.bias is None else y + layer.bias.detach().double()


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("grid_size", [1, 8, 40])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("mode", ["plain", "eager"])
def test_forward_is_scipys(order: int, grid_size: int, uneven: bool, mode: str) -> None:
    options = {"groups": 3, "grid_size": grid_size, "spline_order": order, "uneven": uneven}
    layer = random_layer(6, 4, base_activation=nn.GELU, mode=mode, **options)
    x = torch.cat([3 * torch.randn(50, 6), layer.grid.T.repeat_interleave(2, dim=1)])
    y = layer(x).double()
    torch.testing.assert_close(y, scipys(layer, x), rtol=1e-5, atol=1e-5)


def results(layer: GroupKANLinear, x: Tensor, mode: str) -> dict[str, Tensor]:
    """Output and all gradients of a copy of the layer, run in one way."""
    layer = copy.deepcopy(layer)
    layer.mode = mode
    x = x.detach().requires_grad_()
    y = layer(x)
    (y * (torch.arange(y.numel()) % 7 - 3).to(y.dtype).view(y.shape)).sum().backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **found}


def assert_ways_agree(layer: GroupKANLinear, x: Tensor, *modes: str) -> None:
    exact = results(copy.deepcopy(layer).double(), x.double(), "plain")
    for mode in modes:
        for name, value in results(layer, x, mode).items():
            scale = max(len(x) ** 0.5, float(exact[name].abs().max()))
            error = float((value.double() - exact[name]).abs().max())
            assert error <= 1e-5 * scale, (mode, name, error, scale)


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_eager_equals_plain(
    order: int, activation: type[nn.Module], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", (1, 30))  # several blocks, the last one short
    options = {"spline_order": order, "base_activation": activation, "bias": bias}
    layer = random_layer(8, 5, groups=4, uneven=True, **options)
    assert_ways_agree(layer, 3 * torch.randn(100, 8), "eager", "plain")


@needs_compiler
@pytest.mark.parametrize(
    ("grid_size", "order", "activation"),
    [(8, 3, nn.GELU), (3, 0, nn.Identity), (2, 1, nn.Softplus), (2, 5, nn.SiLU)],
)
def test_compiled_equals_plain(
    grid_size: int, order: int, activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "PRODUCTS_OF_THREAD", 100)
    options = {"grid_size": grid_size, "spline_order": order, "base_activation": activation}
    # a row of fewer numbers than the kernel takes at a time, groups of fewer, of as many, of more
    # but not a multiple; a row less than there are threads
    for width, groups, rows in (
        (6, 2, 100), (16, 2, 30), (40, 8, 20), (64, 32, 20), (36, 3, 700), (1, 1, 1),
    ):  # fmt: skip
        layer = random_layer(width, 3, groups=groups, uneven=True, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_ways_agree(layer, 3 * torch.randn(rows, width), "compiled")


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_rows(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PRODUCTS_OF_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer = random_layer(24, 3, groups=2, base_activation=nn.GELU)
    for rows in (1, 2, 7):
        assert_ways_agree(layer, 3 * torch.randn(rows, 24), "compiled")


@needs_compiler
def test_compiled_in_double_precision() -> None:
    layer = random_layer(24, 3, groups=2, base_activation=nn.GELU).double()
    x = 3 * torch.randn(40, 24, dtype=torch.float64)
    plain = results(layer, x, "plain")
    for name, value in results(layer, x, "compiled").items():
        torch.testing.assert_close(value, plain[name], rtol=1e-10, atol=1e-10)


@needs_compiler
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_at_knots_and_far_outside(order: int, mode: str) -> None:
    layer = random_layer(16, 1, groups=2, grid_size=3, spline_order=order, mode=mode)
    x = torch.cat([
        layer.grid.T.repeat_interleave(8, dim=1),
        torch.nextafter(layer.grid, torch.tensor(9.0)).T.repeat_interleave(8, dim=1),
        torch.full((1, 16), 1e30), torch.full((1, 16), -1e30),
    ])  # fmt: skip
    torch.testing.assert_close(layer(x).double(), scipys(layer, x), rtol=1e-5, atol=1e-5)
    assert layer(torch.full((1, 16), torch.nan)).isnan().all()
    nn.init.ones_(layer.weight)
    assert layer(torch.full((1, 16), torch.inf)).item() == torch.inf  # no NaN of the splines


def test_select_kernel_equals_gather_kernel() -> None:
    """The one for other devices, whose functions are not compiled here."""
    layer = random_layer(12, 1, groups=3, uneven=True)
    pieces = splines.polynomial_pieces(layer.grid, 3) @ layer.spline_weight[:, None, :, None]
    pieces = pieces.squeeze(-1).detach()
    functions = (
        partial(inductor.write_group_values, "gelu"),
        partial(inductor.write_group_gradients, "gelu"),
        partial(inductor.write_group_moments, 3),
    )
    settings = layer.grid, pieces, "gelu", torch.float32
    select = inductor.CompiledGroupFunctions(functions, *settings)
    gather = eager.GroupFunctions(*settings)
    x, grad = 3 * torch.randn(50, 12), torch.randn(50, 12)
    torch.testing.assert_close(select.values(x), gather.values(x))
    of_select, of_gather = torch.empty_like(x), torch.empty_like(x)
    kernels = (select, of_select), (gather, of_gather)
    found = [kernel.gradients(x, grad, grad_x) for kernel, grad_x in kernels]
    torch.testing.assert_close(*(values for values, _ in found))
    torch.testing.assert_close(*(moments[:, 1:-1] for _, moments in found))
    torch.testing.assert_close(of_select, of_gather)


@pytest.mark.parametrize("mode", ["eager", pytest.param("compiled", marks=needs_compiler)])
def test_a_changed_grid_is_noticed(mode: str) -> None:
    layer = random_layer(8, 2, groups=2, mode=mode)
    x = torch.randn(20, 8)
    first = layer(x)
    with torch.inference_mode():
        layer(x)
    copied = copy.deepcopy(layer)
    for changed in (layer, copied):
        for write in (changed.grid.mul_, changed.grid.data.mul_):
            write(0.5)
            y = changed(x)
            assert not torch.allclose(y, first)
            torch.testing.assert_close(y.double(), scipys(changed, x), rtol=1e-5, atol=1e-5)


def test_tracing_leaves_nothing_behind() -> None:
    layer = random_layer(8, 2, groups=2, mode="plain")
    x = torch.randn(20, 8)
    layer.grid.mul_(0.9)  # knots that were not seen before
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer(x)
    y = layer(x)
    assert type(y) is Tensor
    torch.testing.assert_close(y.double(), scipys(layer, x), rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("mode", ["compiled", "eager"])
def test_autocast_rounds_the_product_alone(mode: str) -> None:
    layer = random_layer(16, 5, mode=mode, grid_size=2, spline_order=1)
    x = torch.randn(64, 16, requires_grad=True)
    exact = scipys(layer, x.detach())
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in (x, *layer.parameters()))
    error = (y.double() - exact).abs().max() / exact.abs().max()
    assert error < 2e-2


def test_gradients_are_those_of_the_function_to_second_order() -> None:
    layer = random_layer(4, 3, groups=2, base_activation=nn.GELU).double()
    x = (2 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    for mode in ("eager", "plain"):
        layer.mode = mode
        torch.autograd.gradcheck(layer, (x,))
        torch.autograd.gradgradcheck(layer, (x,))


@settings(max_examples=25, deadline=None)
@given(
    lead=st.lists(st.integers(0, 3), max_size=3),
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    out=st.integers(1, 3),
)
def test_any_leading_dimensions(lead: list[int], groups: int, width: int, out: int) -> None:
    layer = random_layer(groups * width, out, groups=groups)
    x = torch.randn(*lead, groups * width, requires_grad=True)
    y = layer(x)
    assert y.shape == (*lead, out)
    torch.testing.assert_close(y.double(), scipys(layer, x.detach()), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_an_input_that_is_not_contiguous() -> None:
    layer = random_layer(8, 3)
    x = torch.randn(8, 20)
    assert torch.equal(layer(x.T), layer(x.T.contiguous()))


def test_infinite_and_missing_values_stay_in_their_rows() -> None:
    layer = random_layer(8, 3, base_activation=nn.Identity)
    x = torch.randn(4, 8)
    clean = layer(x)
    x[1, 2], x[2, 3] = torch.inf, torch.nan
    for mode in ("plain", "eager"):
        layer.mode = mode
        y = layer(x)
        torch.testing.assert_close(y[[0, 3]], clean[[0, 3]])
        assert not y[1].isfinite().any()
        assert y[2].isnan().all()
        assert y[1].isinf().all(), "the spline is zero out there, whatever the base is"


@needs_compiler
def test_a_missing_value_spoils_its_own_group_alone() -> None:
    layer = random_layer(24, 2, groups=6, mode="compiled")
    x = torch.randn(3, 24)
    x[1, 9] = torch.nan
    layer(x).sum().backward()
    spoilt = layer.spline_weight.grad.isnan().any(dim=1)
    assert spoilt.tolist() == [False, False, True, False, False, False]


def test_without_splines_it_is_a_linear_layer() -> None:
    torch.manual_seed(3)
    linear = nn.Linear(16, 7)
    torch.manual_seed(3)
    layer = GroupKANLinear(16, 7)
    x = torch.randn(5, 16)
    torch.testing.assert_close(layer(x), linear(x))
    layer(x).sum().backward()
    assert (layer.spline_weight.grad != 0).any(dim=1).all(), "each spline can leave zero"


def test_only_the_input_is_kept_for_backward() -> None:
    layer = random_layer(64, 32, mode="eager")
    x = torch.randn(1000, 64, requires_grad=True)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    layers_own = sum(p.numel() for p in (*layer.parameters(), *layer.buffers()))
    per_place = (layer.spline_order + 1) * (layer.grid_size + layer.spline_order + 1)
    pieces = layer.groups * (layer.grid.shape[1] + 1) * per_place
    assert sum(saved.values()) <= x.numel() + layers_own + pieces


def test_flops_are_those_of_the_product() -> None:
    layer = random_layer(64, 32, mode="eager")
    x = torch.randn(10, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_flop_counts()["Global"][torch.ops.kansformer.group_kan_linear] == (
        2 * 10 * 64 * 32
    )
    assert counter.get_total_flops() >= 3 * 2 * 10 * 64 * 32


def test_refining_and_calibrating_keep_the_functions() -> None:
    layer = random_layer(8, 3, groups=2)
    x = torch.randn(500, 8)
    before = layer(x)
    refine_grid(layer, 16)
    assert layer.spline_weight.shape == (2, 19)
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)
    layer.update_grid(x)
    assert (layer(x) - before).abs().max() < 0.1 * before.abs().max()
    calibrate_grid(layer, x, coverage=1.0)
    grid = layer.grid[:, 3:-3]
    own = x.reshape(500, 2, 4)
    torch.testing.assert_close(grid[:, 0], own.amin(dim=(0, 2)))
    torch.testing.assert_close(grid[:, -1], own.amax(dim=(0, 2)))


def test_it_is_at_home_wherever_torch_is(tmp_path: Path) -> None:
    layer = random_layer(8, 3, mode="eager", base_activation=nn.GELU).eval()
    x = torch.randn(5, 8)
    expected = layer(x)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other = GroupKANLinear(8, 3, base_activation=nn.GELU)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(same(x), expected)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    jacobian = torch.func.vmap(torch.func.jacrev(layer))(x)
    assert jacobian.shape == (5, 3, 8)
    half = copy.deepcopy(layer).bfloat16()
    assert half.grid.dtype == torch.float32
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


@needs_compiler
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_frozen_weights_cost_no_product_and_change_no_other_gradient(mode: str) -> None:
    layer = random_layer(64, 32, mode=mode)
    x, grad = torch.randn(300, 64, requires_grad=True), torch.randn(300, 32)
    gradients, flops = [], []
    for trains in (True, False):
        layer.weight.requires_grad_(trains)
        layer.bias.requires_grad_(trains)
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        with FlopCounterMode(display=False) as counter:
            y.backward(grad)
        gradients.append((x.grad, layer.spline_weight.grad))
        flops.append(counter.get_total_flops())
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    for all_of_them, without in zip(*gradients, strict=True):
        assert torch.equal(all_of_them, without)
    assert flops[0] - flops[1] == 2 * 300 * 64 * 32


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's check reads them all
@pytest.mark.parametrize("for_weight", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_operators_are_what_torch_expects(compiled: bool, for_weight: bool) -> None:
    layer = GroupKANLinear(8, 3, groups=4, spline_order=2)
    pieces = splines.polynomial_pieces(layer.grid, 2).sum(dim=-1).requires_grad_()
    layer_of = layer.grid, pieces, layer.weight
    x, settings = torch.randn(20, 8, requires_grad=True), ("gelu", torch.float32, compiled)
    operators = torch.ops.kansformer
    torch.library.opcheck(operators.group_kan_linear.default, (x, *layer_of, layer.bias, *settings))
    torch.library.opcheck(
        operators.group_kan_linear_backward.default,
        (torch.randn(20, 3), x, *layer_of, *settings, for_weight),
        test_utils="test_faketensor",
    )  # fmt: skip


@pytest.mark.parametrize("order", range(6))
def test_pieces_are_the_basis(order: int) -> None:
    knots = torch.rand(2, 9 + order, dtype=torch.float64).sort(dim=1).values
    pieces = splines.polynomial_pieces(knots, order)  # (in, M + 1, order + 1, n)
    assert not pieces[:, [0, -1]].any()
    share = torch.rand(20, 1, dtype=torch.float64)
    for interval in range(knots.shape[1] - 1):
        start, end = knots[:, interval], knots[:, interval + 1]
        x = start + share * (end - start)  # (20, in)
        powers = (x - start)[..., None] ** torch.arange(order + 1)
        values = torch.einsum("rip,ipn->rin", powers, pieces[:, interval + 1])
        torch.testing.assert_close(values, splines.b_spline_basis(x, knots, order))


def test_a_fresh_model_is_its_mlp_twin() -> None:
    models = []
    for ffn in ("mlp", "group-kan"):
        torch.manual_seed(5)
        models.append(create_model("vit_micro_patch4_8", ffn=ffn, num_classes=3).eval())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(models[0](x), models[1](x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 10}, "10 channels do not divide into 8"),
        ({"groups": 0}, "at least 1"),
        ({"grid_range": (1, 1)}, "low < high"),
        ({"mode": "fast"}, "mode"),
    ],
)
def test_what_cannot_be_built_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupKANLinear(**{"in_features": 8, "out_features": 3, **options})
