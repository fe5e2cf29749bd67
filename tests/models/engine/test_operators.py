"""One definition, three ways to run it: all equal, all lean, and at home wherever torch is."""

import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import splines
from models.engine import blocks, eager, inductor, memory, operators
from models.engine.cpp import kernels
from models.engine.definition import ACTIVATIONS as ACTIVATIONS_OF_ENGINE
from models.engine.definition import Weights, kan_features
from models.kan import BASE_ACTIVATIONS, KAN, GroupKANLinear, KANFeedForward, KANLinear
from models.kan_grid import refine_grid
from models.vit_model import create_model
from tests.conftest import ROOT
from tests.models.test_kan import irregular_layer, random_layer

ACTIVATIONS = [nn.SiLU, nn.GELU, nn.ReLU, nn.Tanh, nn.Identity, nn.Softplus]  # one has no kernel
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++").split()[0]) is None, reason="no C++ compiler"
)


def results(layer: nn.Module, x: Tensor, mode: str) -> dict[str, Tensor]:
    """Output and all gradients of a copy of the layer, run in one way."""
    layer = copy.deepcopy(layer)
    for module in layer.modules():
        if isinstance(module, KANLinear):
            module.mode = mode
    x = x.detach().requires_grad_()
    y = layer(x)
    weight = (torch.arange(y.numel()) % 7 - 3).to(y.dtype).view(y.shape)
    (y * weight).sum().backward()
    found = {"y": y.detach(), "x": x.grad}
    found |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert all(value is not None for value in found.values())
    return found


def assert_ways_agree(layer: nn.Module, x: Tensor, *modes: str) -> None:
    """Each mode gives what the plain way gives in float64, to rounding: sums are over the rows."""
    exact = results(copy.deepcopy(layer).double(), x.double(), "plain")
    for mode in modes:
        for name, value in results(layer, x, mode).items():
            scale = max(len(x) ** 0.5, float(exact[name].abs().max()))
            error = float((value.double() - exact[name]).abs().max())
            assert error <= 1e-5 * scale, (mode, name, error, scale)


def prepared(layer: KANLinear) -> KANLinear:
    """With splines as large as the base."""
    nn.init.normal_(layer.spline_weight)
    return layer


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("grid_size", [1, 5, 50, 100])
@pytest.mark.parametrize("uneven", [False, True])
def test_eager_equals_plain(
    order: int, grid_size: int, uneven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = prepared(KANLinear(7, 4, grid_size=grid_size, spline_order=order))
    if uneven:
        gaps = 0.2 + torch.rand(layer.grid.shape)
        layer.grid.copy_(4 * gaps.cumsum(dim=1) / gaps.sum(dim=1, keepdim=True) - 2)
    monkeypatch.setattr(blocks, "BLOCK_FEATURES", 10**9)  # several blocks, the last one short
    monkeypatch.setattr(blocks, "BLOCK_ROWS", (1, 30))
    assert_ways_agree(layer, torch.randn(100, 7) * 1.5, "eager", "plain")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scaler", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_of_layer_runs_in_every_way(
    activation: type[nn.Module], scaler: bool, bias: bool
) -> None:
    layer = KANLinear(
        5, 3, base_activation=activation, enable_standalone_scale_spline=scaler, bias=bias
    )
    assert_ways_agree(prepared(layer), torch.randn(40, 5), "eager", "plain")


@needs_compiler
@pytest.mark.parametrize(
    ("order", "grid_size", "activation"),
    [
        (0, 1, nn.Softplus), (0, 3, nn.GELU), (1, 1, nn.ReLU), (1, 4, nn.ReLU), (2, 1, nn.Softplus),
        (3, 5, nn.SiLU), (4, 2, nn.Tanh), (5, 3, nn.Identity),
    ],
)  # fmt: skip
def test_compiled_equals_plain(
    order: int, grid_size: int, activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "PRODUCTS_OF_THREAD", 100)
    options = {"grid_size": grid_size, "spline_order": order, "base_activation": activation}
    # fewer inputs than the kernel takes at a time, as many, twice as many and a few, one
    for width, out, rows in ((7, 4, 100), (8, 2, 30), (21, 3, 700), (1, 1, 1)):
        layer = prepared(KANLinear(width, out, **options))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_ways_agree(layer, torch.randn(rows, width), "compiled")
        layer.update_grid(torch.randn(200, width))
        assert_ways_agree(layer, torch.randn(rows, width), "compiled")


@needs_compiler
@pytest.mark.parametrize("activation", BASE_ACTIVATIONS.values())
def test_each_base_activation_runs_in_every_way(activation: type[nn.Module]) -> None:
    assert BASE_ACTIVATIONS.keys() == ACTIVATIONS_OF_ENGINE.keys()
    layer = prepared(KANLinear(7, 4, grid_size=1, spline_order=1, base_activation=activation))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_ways_agree(layer, torch.randn(100, 7), "compiled", "eager", "plain")


@needs_compiler
@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU, nn.Tanh])
def test_compiled_in_double_precision(activation: type[nn.Module]) -> None:
    layer = irregular_layer(11, 3, 3, base_activation=activation)
    x = 2 * torch.randn(40, 11, dtype=torch.float64)
    plain = results(layer, x, "plain")
    for name, value in results(layer, x, "compiled").items():
        torch.testing.assert_close(value, plain[name], rtol=1e-10, atol=1e-10)


@needs_compiler
@pytest.mark.parametrize("kind", [KANLinear, partial(GroupKANLinear, groups=3)])
def test_kernels_read_nothing_that_was_not_written(
    kind: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        return like.new_full(shape, torch.nan, dtype=dtype)

    monkeypatch.setattr(kernels.workspace, "empty", filled)
    monkeypatch.setattr(kernels, "PRODUCTS_OF_THREAD", 100)
    for out in (5, 16, 40):
        layer = kind(21, out)
        layer.mode = "compiled"
        x = torch.randn(300, 21, requires_grad=True)
        wanted = [x, *layer.parameters()]
        expected = torch.autograd.grad(layer(x).square().sum(), wanted)
        assert all(bool(gradient.isfinite().all()) for gradient in expected)
        torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), x)[0], expected[0])
        for gradient, parameter in zip(expected[1:], layer.parameters(), strict=True):
            alone = torch.autograd.grad(layer(x.detach()).square().sum(), parameter)[0]
            torch.testing.assert_close(alone, gradient)


class CppKernel:
    """Features by the kernel of a whole layer, which has an output for each."""

    def __init__(self, knots: Tensor, order: int) -> None:
        width, M = knots.shape
        self.knots, self.order, self.shape = knots, order, (width, M - order - 1)
        spline = torch.eye(width * self.shape[1]).view(width, self.shape[1], *self.shape)
        self.weights = Weights(None, spline.transpose(0, 1).flatten(0, 1), None)
        self.library = kernels.kan_library(knots, order, None)
        assert self.library is not None

    def features(self, x: Tensor) -> Tensor:
        settings = self.knots, self.order, self.weights
        return kernels.kan_forward(self.library, x, *settings).unflatten(1, self.shape[::-1])

    def gradients(self, x: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
        settings = self.knots, self.order, self.weights
        given = grad.flatten(1), x, *settings, True, False
        grad_x.copy_(kernels.kan_backward(self.library, *given)[0])
        return self.features(x)


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "order"),
    [
        *product(["C++", "C++, on uniform knots"], range(6)),
        *product(["UniformFeatures"], range(2, 6)),  # it leaves lower orders to the recursion
    ],
)
def test_a_kernel_at_knots_and_far_outside(kind: str, order: int) -> None:
    layer = irregular_layer(9, 1, order).float()
    if kind != "C++":  # uniform knots, different for each feature
        low, high = torch.rand(2, 9, 1, dtype=torch.float64) + torch.tensor([-4, 3])[:, None, None]
        layer.grid = (low + (high - low) * torch.linspace(0, 1, layer.grid.shape[1])).float()
        assert splines.uniform_steps(layer.grid) is not None
    knots = layer.grid.T
    x = torch.cat([
        knots, torch.nextafter(knots, knots + 1), torch.nextafter(knots, knots - 1),
        torch.full((1, 9), 1e30), torch.full((1, 9), -1e30), torch.full((1, 9), torch.inf),
    ])  # fmt: skip
    exact = kan_features(x.double().clamp(-1e30, 1e30), layer.grid.double(), order, None)
    kernel: CppKernel | eager.FeatureKernel = CppKernel(layer.grid, order)
    if kind == "UniformFeatures":
        kernel = blocks._feature_kernel(
            [slice(0, len(x))], layer.grid, order, None, torch.float32, True
        )
        assert isinstance(kernel, eager.UniformFeatures)
    assert (kernel.features(x).double() - exact).abs().max() < 2e-6
    grad = torch.randn(exact.shape)
    slopes = torch.empty_like(x)
    found = kernel.gradients(x, grad, slopes)
    assert (found.double() - exact).abs().max() < 2e-6
    assert slopes.isfinite().all()
    if order >= 2:  # a slope of a lower order leaps at the knots
        places = x.double().clamp(-1e30, 1e30).requires_grad_()
        kan_features(places, layer.grid.double(), order, None).backward(grad.double())
        assert (slopes.double() - places.grad).abs().max() < 1e-4


# more inputs than a block has, outputs than a tile, and rows than are computed at a time; and a few
@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1, 1), (97, 401, 3), (200, 37, 131), (5, 130, 900)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_in_blocks_of_all_sizes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, width, out = shape
    x = torch.randn(rows, width, dtype=dtype)
    without: list[dict[str, Any]] = [
        {"enable_standalone_scale_spline": False}, {"base_activation": nn.Softplus},
    ]  # fmt: skip
    for options in without:
        assert_ways_agree(KANLinear(width, out, **options).to(dtype), x, "compiled")
    assert_ways_agree(irregular_layer(width, out, 3).to(dtype), x, "compiled")
    layer = KANLinear(width, out).to(dtype)
    assert_ways_agree(layer, x, "compiled")
    x[0] = torch.nan
    layer.mode = "compiled"
    assert layer(x[1:]).equal(layer(x)[1:])


def trained(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and the gradients of all parameters, of a sum of squares."""
    layer.zero_grad()
    y = layer(x)
    y.float().square().sum().backward()
    return y.detach(), [parameter.grad.clone() for parameter in layer.parameters()]


@needs_compiler
@pytest.mark.parametrize("kind", [KANLinear, GroupKANLinear])
class TestCompiled:
    def test_weights_alone_views_and_empty_batches(self, kind: type[nn.Module]) -> None:
        layer = kind(16, 9, mode="compiled")
        x = torch.randn(16, 50).T
        y, gradients = trained(layer, x)
        assert y.equal(layer(x.contiguous()))
        every = x.contiguous().requires_grad_()  # also that in x
        torch.testing.assert_close(trained(layer, every)[1], gradients, rtol=0, atol=0)
        y, gradients = trained(layer, x[:0])
        assert y.shape == (0, 9)
        assert not any(gradient.any() for gradient in gradients)

    def test_in_short_floats_and_under_autocast(self, kind: type[nn.Module]) -> None:
        layer = kind(16, 9, mode="compiled")
        x = torch.randn(50, 16)
        expected, slopes = trained(layer, x)
        with torch.autocast("cpu", torch.bfloat16):
            y, gradients = trained(layer, x)
        assert y.equal(expected.bfloat16())
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert gradient.dtype == torch.float32
            torch.testing.assert_close(gradient, slope, rtol=0.05, atol=0.05 * float(slope.std()))
        layer = layer.bfloat16()
        y, gradients = trained(layer, x.bfloat16())
        assert {y.dtype, *(gradient.dtype for gradient in gradients)} == {torch.bfloat16}
        torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)

    def test_a_row_that_is_not_finite_stays_alone(self, kind: type[nn.Module]) -> None:
        layer = kind(24, 9, mode="compiled")
        x = torch.randn(30, 24)
        x[7] = torch.nan
        y = layer(x)
        assert y[7].isnan().all()
        others = torch.arange(30) != 7
        assert y[others].equal(layer(x[others]))

    def test_on_several_threads(self, kind: type[nn.Module]) -> None:
        layer, x = kind(96, 2, mode="compiled"), torch.randn(50_000, 96)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            y, gradients = trained(layer, x)
            torch.set_num_threads(3)
            assert kernels._threads(len(x), 2 * 96) == 3  # more than outputs
            again, others = trained(layer, x)
            once_more, equal = trained(layer, x)
        finally:
            torch.set_num_threads(threads)
        assert again.equal(y)
        assert once_more.equal(y)
        for gradient, other, same in zip(gradients, others, equal, strict=True):
            assert other.equal(same)
            torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * len(x) ** 0.5)

    def test_what_does_not_belong_together_is_refused(self, kind: type[nn.Module]) -> None:
        layer = kind(16, 9, mode="compiled")
        layer.grid = layer.grid[:, 1:].clone()
        with pytest.raises((ValueError, RuntimeError)):
            layer(torch.randn(50, 16))


@needs_compiler
@pytest.mark.parametrize("order", [0, 1, 3])
def test_compiled_at_the_end_of_a_grid_with_equal_knots(order: int) -> None:
    knots = torch.tensor([0.0] * (order + 1) + [0.3, 0.6] + [1.0] * (order + 1)).repeat(8, 1)
    x = torch.tensor([[0.0], [0.3], [0.9], [1.0], [1.1]]).repeat(1, 8)
    found = CppKernel(knots, order).features(x)
    torch.testing.assert_close(found, kan_features(x, knots, order, None))


def test_polynomials_of_a_high_degree_are_not_looked_up() -> None:
    assert kernels.kan_library(irregular_layer(3, 1, 9).grid, 9, None) is None


@pytest.mark.parametrize("order", [0, 3])
def test_the_kernel_of_other_devices_equals_the_eager_one(order: int) -> None:
    """Its functions are not compiled here."""
    layer = irregular_layer(12, 1, order).float()
    functions = (
        partial(inductor.write_features, order, "gelu"),
        partial(inductor.write_feature_gradients, order, "gelu"),
    )
    settings = 50, layer.grid, order, "gelu", torch.float32
    x, count = torch.randn(50, 12), layer.grid_size + order + 1
    grad = torch.randn(50, count, 12)
    kernels = (
        inductor.CompiledFeatures(functions, *settings), eager.RecursionFeatures(*settings)
    )  # fmt: skip
    values = [kernel.features(x).clone() for kernel in kernels]
    torch.testing.assert_close(*values)
    slopes = [torch.empty_like(x) for _ in kernels]
    found = [
        kernel.gradients(x, grad, own).clone() for kernel, own in zip(kernels, slopes, strict=True)
    ]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*slopes)


def test_without_a_compiler_it_falls_back_with_one_warning(tmp_path: Path) -> None:
    code = """if True:
        import torch
        from models.kan import KAN
        torch.manual_seed(0)
        network = KAN([3, 4, 2], mode="compiled")
        x = torch.randn(20, 3)
        for _ in range(3):
            y = network(x)
            y.sum().backward()
        for layer in network.layers:
            layer.mode = "plain"
        print(float((network(x) - y).detach().abs().max()))
    """
    folders = {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, **folders, "CXX": "no-such-compiler", "PYTHONWARNINGS": "default"},
    )  # fmt: skip
    assert float(done.stdout) < 1e-5
    assert done.stderr.count("UserWarning") == 1
    assert "run eagerly instead" in done.stderr


# ---- what it keeps, and in which precision ----


@pytest.mark.parametrize("mode", [pytest.param("compiled", marks=needs_compiler), "eager"])
@pytest.mark.parametrize("grid_size", [5, 50])
def test_only_the_input_is_kept_for_backward(mode: str, grid_size: int) -> None:
    layer = KANLinear(6, 4, grid_size=grid_size, mode=mode)
    x = torch.randn(50, 6, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    known = (x, layer.grid, *layer.parameters())
    assert set(kept) <= {tensor.untyped_storage().data_ptr() for tensor in known}
    assert y.requires_grad


@pytest.mark.parametrize("grid_size", [5, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_autocast_in_both_directions(dtype: torch.dtype, grid_size: int) -> None:
    layer = prepared(KANLinear(16, 8, grid_size=grid_size))
    x = torch.randn(64, 16)
    whole = results(layer, x, "eager")
    with torch.autocast("cpu", dtype):
        half = results(layer, x, "eager")
        plain = results(layer, x, "plain")
    assert half["y"].dtype == plain["y"].dtype == dtype
    for name, value in whole.items():
        if name != "y":
            assert half[name].dtype == torch.float32
        for other in (half[name], plain[name]):
            assert float((other.float() - value).norm() / value.norm()) < 0.02, name


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16])
def test_casting_a_module_never_rounds_its_knots(cast: object) -> None:
    layer = irregular_layer(3, 4, 3).float()
    knots = layer.grid.clone()
    network = nn.Sequential(cast(layer))
    assert layer.grid.dtype == torch.float32
    assert torch.equal(layer.grid, knots)
    assert layer.spline_weight.dtype.itemsize == 2
    x = torch.randn(30, 3).to(layer.spline_weight.dtype)
    y = network(x)
    assert y.dtype == x.dtype
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    exact = copy.deepcopy(layer).double()(x.double())
    assert float((y - exact).detach().norm() / exact.detach().norm()) < 0.02
    assert network.double()[0].grid.dtype == torch.float64


def test_autocast_gives_the_types_that_it_gives_a_linear_layer() -> None:
    for layer in (KANLinear(4, 3, bias=True), KANLinear(4, 3, base_activation=nn.Softplus)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            layer.to(dtype)
            x = torch.randn(5, 4).to(dtype)
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x).dtype == nn.Linear(4, 3).to(dtype)(x).dtype
                if dtype == torch.float32:
                    assert layer(x.half()).dtype == torch.bfloat16


def test_inference_mode_leaves_no_trace() -> None:
    memory.workspace.buffers.clear()
    layer, x = KANLinear(4, 3, mode="eager"), torch.randn(20, 4)
    with torch.inference_mode():
        expected = layer(x)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, expected)


def test_runs_are_deterministic() -> None:
    layer, x = prepared(KANLinear(30, 20)), torch.randn(400, 30)
    first, second = (results(layer, x, "eager") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- at home in torch ----


@pytest.mark.parametrize("mode", ["eager", "plain"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_odd_inputs(mode: str, data: st.DataObject) -> None:
    layer = KANLinear(4, 3, grid_size=data.draw(st.sampled_from([5, 50])), mode=mode)
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    x = torch.randn(*shape, 4) * data.draw(st.sampled_from([0.0, 1.0, 1e30]))
    x.requires_grad_()
    how = data.draw(st.sampled_from(["as it is", "turned", "strided", "expanded"]))
    if how == "turned":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif how == "strided":
        x = x.repeat_interleave(2, dim=-1)[..., ::2]
    elif how == "expanded":
        x = x[..., :1].expand(*shape, 4)
    y = layer(x)
    assert y.shape == (*shape, 3)
    torch.testing.assert_close(y, layer(x.contiguous().clone()))
    found = torch.autograd.grad(y.sum(), x)[0]  # from a gradient that is expanded
    leaf = x.detach().contiguous().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(layer(leaf).sum(), leaf)[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's check reads them all
@pytest.mark.parametrize("compiled", [True, False])
def test_the_operator_is_what_torch_expects(compiled: bool) -> None:
    layer = random_layer()
    arguments = (
        torch.randn(6, 3, requires_grad=True), layer.grid, layer.base_weight, layer.spline_weight,
        layer.spline_scaler, 3, "silu", torch.float32, compiled,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.kansformer.kan_linear.default, arguments)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_gradient_by_the_operator_is_not_silently_differentiated(compiled: bool) -> None:
    layer = random_layer()
    x, grad = torch.randn(6, 3, requires_grad=True), torch.randn(6, layer.out_features)
    tensors = grad, x, layer.grid, layer.base_weight, layer.spline_weight, layer.spline_scaler
    settings = 3, "silu", torch.float32, compiled, True, False
    found = torch.ops.kansformer.kan_linear_backward(*tensors, *settings)[0]
    with pytest.raises(RuntimeError, match="no second derivatives"):
        found.sum().backward()


@pytest.mark.parametrize("ffn", ["kan", "mlp"])
def test_a_whole_model_compiles_without_a_break(ffn: str) -> None:
    model = create_model(
        "kansformer_micro", img_size=16, patch_size=8, num_classes=3, depth=2, ffn=ffn, head="kan"
    )
    pictures = torch.randn(4, 3, 16, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for network in (model, compiled):
        model.zero_grad()
        network(pictures).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pictures[:3]), model(pictures[:3]))


def test_a_whole_model_is_exported_in_plain_operations() -> None:
    model = create_model("kansformer_micro", img_size=16, patch_size=8, num_classes=3, depth=2)
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model.eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes={"x": {0: batch}}
    )
    assert "kansformer" not in str(program.graph)
    pictures = torch.randn(7, 3, 16, 16)
    torch.testing.assert_close(program.module()(pictures), model(pictures), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # in torch's jacfwd
@pytest.mark.parametrize("order", [0, 1, 3])
def test_functional_transforms(order: int) -> None:
    layer = irregular_layer(3, 2, order)
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
    slopes = torch.vmap(torch.func.jacrev(layer))(x)  # (5, 2, 3)
    expected = torch.autograd.functional.jacobian(lambda x: layer(x).sum(dim=0), x)
    torch.testing.assert_close(slopes, expected.transpose(0, 1))
    torch.testing.assert_close(torch.vmap(torch.func.jacfwd(layer))(x), slopes)
    curvature = torch.func.hessian(lambda x: layer(x).square().sum())(x)
    expected = torch.autograd.functional.hessian(lambda x: layer(x).square().sum(), x)
    torch.testing.assert_close(curvature, expected)

    state = dict(layer.named_parameters()) | dict(layer.named_buffers())
    stacked = {name: torch.stack([value, value * 1.1]) for name, value in state.items()}
    several = torch.vmap(lambda s: torch.func.functional_call(layer, s, (x,)))(stacked)
    torch.testing.assert_close(several[0], layer(x))


def test_forward_mode_differentiation() -> None:
    layer = irregular_layer(3, 2, 3).requires_grad_(False)
    x, direction = torch.randn(2, 5, 3, dtype=torch.float64)
    with warnings.catch_warnings(), torch.autograd.forward_ad.dual_level():
        warnings.simplefilter("ignore")  # torch.jit.script, as above
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        value, tangent = torch.autograd.forward_ad.unpack_dual(layer(dual))
    torch.testing.assert_close(value, layer(x))
    jacobian = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(tangent, torch.einsum("aobi,bi->ao", jacobian, direction))


def test_meta_device_and_late_initialization() -> None:
    with torch.device("meta"):
        layer = KANLinear(4, 3)
        assert layer(torch.empty(5, 4)).shape == (5, 3)
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer.grid, KANLinear(4, 3).grid)
    assert layer(torch.randn(5, 4)).isfinite().all()


def test_copies_compute_the_same_after_a_change_of_grid() -> None:
    network = KAN([3, 5, 2])
    network(torch.randn(99, 3), update_grid=True)
    for layer in network.layers:
        refine_grid(layer, 20)
    x = torch.randn(20, 3)
    packed = io.BytesIO()
    torch.save(network.state_dict(), packed)
    packed.seek(0)
    fresh = KAN([3, 5, 2], grid_size=20)
    fresh.load_state_dict(torch.load(packed, weights_only=True))
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), fresh):
        assert torch.equal(other(x), network(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        KAN([3, 5, 2]).load_state_dict(network.state_dict())


def test_its_operations_are_counted() -> None:
    x = torch.randn(10, 6, requires_grad=True)
    counts = []
    for mode in ("eager", "plain"):
        with FlopCounterMode(display=False) as counter:
            KANLinear(6, 4, mode=mode)(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts == [3 * 2 * 10 * 6 * 9 * 4] * 2  # the product and two gradients


# ---- the choice ----


def chosen(layer: KANLinear, x: Tensor) -> str:
    return operators.chosen_mode(x, Weights(None, layer.spline_weight, None), layer.mode)


def test_the_way_to_run_is_chosen_and_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAN_MODE", raising=False)
    layer = KANLinear(64, 4)
    large, small = torch.zeros(operators.COMPILE_ELEMENTS // 64, 64), torch.zeros(8, 64)
    assert chosen(layer, large) == "compiled"
    assert chosen(layer, small) == "eager"
    with torch.no_grad():
        assert chosen(layer, large) == "eager"
        with operators.compile_without_gradients():
            assert chosen(layer, large) == "compiled"
            assert chosen(layer, small) == "eager"
        assert chosen(layer, large) == "eager"
    monkeypatch.setenv("KAN_MODE", "plain")
    assert chosen(layer, large) == "plain"
    layer.mode = "eager"  # a layer's own word goes first
    assert chosen(layer, large) == "eager"
    layer.mode = "compile"
    with pytest.raises(ValueError, match="not 'compile'"):
        layer(small)
    with pytest.raises(ValueError, match="one of auto, compiled, eager, plain, not 'fast'"):
        KANLinear(3, 3, mode="fast")
    monkeypatch.setenv("KAN_MODE", "fast")
    with pytest.raises(ValueError, match="not 'fast'"):
        KANLinear(3, 3)(torch.zeros(2, 3))


def test_training_goes_the_same_way_in_each() -> None:
    curves = []
    for mode in ("plain", "eager"):
        torch.manual_seed(0)
        block = KANFeedForward(8, 4, 3)
        block.fc1.mode = block.fc2.mode = mode
        optimizer = torch.optim.Adam(block.parameters(), lr=0.01)
        x = torch.randn(64, 8)
        losses = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = (block(x) - x[:, :3].sin()).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    assert curves[0][-1] < 0.5 * curves[0][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=0, atol=1e-5)
