"""The laws of a layer's grid: what a change keeps, what it refuses, what the optimizer is told."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kan import KAN, KANLinear
from models.kan_grid import (
    calibrate_grid,
    change_grid,
    fit_grids,
    refine_grid,
    spline_layers,
    update_grid,
)
from models.vit_model import create_model
from tests.models.test_kan import irregular_layer, random_layer
from tests.models.test_splines import scipy_basis


def spline_curves(layer: KANLinear, x: Tensor) -> np.ndarray:
    """Spline of every edge at samples, (N, in, out), by scipy in float64."""
    weight = layer.scaled_spline_weight.detach().double().numpy()
    curves = [
        scipy_basis(x[:, i].double().numpy(), layer.grid[i].double().numpy(), layer.spline_order)
        @ weight[:, i].T
        for i in range(layer.in_features)
    ]
    return np.stack(curves, axis=1)


def state_of(layer: torch.nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(layer.state_dict())


def assert_equal_states(layer: torch.nn.Module, state: dict[str, Tensor]) -> None:
    assert layer.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


# ---- moving it to where the samples are ----

SAMPLES = {
    "uniform": lambda: torch.rand(400, 3) * 4 - 2,
    "skewed": lambda: torch.randn(400, 3).exp() - 1,
    "few": lambda: torch.randn(7, 3),
    "three-dimensional": lambda: torch.randn(5, 80, 3),
    "ties": lambda: torch.randint(-8, 9, (500, 3)) / 4,
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_update_is_the_least_squares_best(kind: str) -> None:
    layer = random_layer()
    x = SAMPLES[kind]()
    scaler = layer.spline_scaler.detach().clone()
    flat = x.reshape(-1, 3)
    before = spline_curves(layer, flat)
    assert layer.update_grid(x).all()
    assert torch.equal(layer.spline_scaler, scaler)
    low, high = layer.grid[:, 3], layer.grid[:, -4]
    assert ((flat >= low) & (flat <= high)).all()
    after = spline_curves(layer, flat)
    for feature in range(3):
        knots = layer.grid[feature].double().numpy()
        a = scipy_basis(flat[:, feature].double().numpy(), knots, 3)
        best = a @ np.linalg.lstsq(a, before[:, feature], rcond=None)[0]
        np.testing.assert_allclose(after[:, feature], best, atol=1e-5)
    if kind == "few":  # seven samples can be met exactly by eight coefficients
        np.testing.assert_allclose(after, before, atol=1e-4)


def test_update_keeps_what_the_new_knots_can_represent() -> None:
    layer = random_layer()
    with torch.no_grad():  # cubic polynomials, by their values at the samples
        x = torch.linspace(-2, 2, 200, dtype=torch.float64)[:, None].expand(-1, 3)
        powers = torch.stack([x**p for p in range(4)], dim=-1)
        curves = powers @ torch.randn(4, 4, dtype=torch.float64)
        coefficients = copy.deepcopy(layer).double().curve2coeff(x, curves)
        layer.spline_weight.copy_(coefficients / layer.spline_scaler[..., None])
    samples = torch.rand(300, 3) * 3.9 - 1.95
    before = spline_curves(layer, samples)
    layer.update_grid(samples)
    np.testing.assert_allclose(spline_curves(layer, samples), before, atol=1e-5)


@pytest.mark.parametrize("update", [update_grid, calibrate_grid])
def test_a_constant_feature_keeps_its_grid_and_a_warning_says_so(
    update: Callable[[KANLinear, Tensor], Tensor],
) -> None:
    layer = random_layer()
    x = torch.randn(300, 3)
    x[:, 1] = 0.7
    state = state_of(layer)
    with pytest.warns(UserWarning, match="1 of 3 features"):
        moved = update(layer, x)
    assert moved.tolist() == [True, False, True]
    assert torch.equal(layer.grid[1], state["grid"][1])
    assert torch.equal(layer.spline_weight[:, 1], state["spline_weight"][:, 1])
    assert not torch.equal(layer.grid[0], state["grid"][0])


@pytest.mark.parametrize("update", [update_grid, calibrate_grid])
@pytest.mark.parametrize(
    "samples",
    [torch.full((50, 3), 0.3), torch.zeros(0, 3), torch.full((50, 3), torch.nan),
     torch.randn(50, 3).index_fill(0, torch.tensor([7]), torch.inf), torch.randn(50, 4)],
    ids=["constant", "none", "nan", "inf", "too wide"],
)  # fmt: skip
def test_an_update_that_cannot_be_done_changes_nothing(
    samples: Tensor, update: Callable[[KANLinear, Tensor], Tensor]
) -> None:
    layer = random_layer()
    state = state_of(layer)
    with pytest.raises(ValueError, match=r"nothing was changed|is not 3"):
        update(layer, samples)
    assert_equal_states(layer, state)


def test_an_update_needs_more_distinct_samples_than_intervals() -> None:
    layer = random_layer()
    state = state_of(layer)
    with pytest.raises(ValueError, match="too few distinct samples of every feature"):
        layer.update_grid(torch.randn(5, 3))
    assert_equal_states(layer, state)


@given(
    seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), count=st.integers(1, 40),
    order=st.integers(0, 5), grid_size=st.integers(1, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:.*too few distinct samples")
def test_updates_leave_a_usable_layer(
    seed: int, scale: float, count: int, order: int, grid_size: int
) -> None:
    torch.manual_seed(seed)
    layer = random_layer(grid_size, order)
    for update in (update_grid, calibrate_grid):
        with contextlib.suppress(ValueError):
            update(layer, torch.randn(count, 3) * scale)
        assert (layer.grid.diff(dim=-1) > 0).all()
        assert layer.spline_weight.isfinite().all()


@pytest.mark.parametrize("coverage", [1.0, 0.9])
def test_calibration_spans_the_central_share_evenly(coverage: float) -> None:
    layer = random_layer()
    x = torch.randn(2001, 3) * torch.tensor([0.1, 1.0, 30.0])
    assert calibrate_grid(layer, x, coverage).all()
    low, high = np.quantile(x.numpy(), [(1 - coverage) / 2, (1 + coverage) / 2], axis=0)
    expected = np.linspace(low, high, layer.grid_size + 1).T
    np.testing.assert_allclose(layer.grid[:, 3:-3].numpy(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="coverage"):
        calibrate_grid(layer, x, 0.0)


def test_16_bit_layers_can_be_updated() -> None:
    layer = random_layer().bfloat16()
    layer.update_grid(torch.randn(100, 3).bfloat16())
    assert layer.grid.dtype == torch.float32
    assert layer.spline_weight.dtype == torch.bfloat16


# ---- another number of intervals ----


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize(("grid_size", "finer"), [(1, 2), (3, 9), (5, 10), (20, 100)])
@pytest.mark.parametrize("kind", ["uniform", "uneven"])
def test_refining_to_a_nested_grid_leaves_the_function_as_it_was(
    order: int, grid_size: int, finer: int, kind: str
) -> None:
    layer = KANLinear(3, 2, grid_size=grid_size, spline_order=order).double()
    if kind == "uneven":
        gaps = 0.1 + torch.rand(layer.grid.shape, dtype=torch.float64)
        layer.grid.copy_(gaps.cumsum(dim=-1) - gaps.sum(dim=-1, keepdim=True) / 2)
    torch.nn.init.normal_(layer.spline_weight)
    low, high = float(layer.grid.min()) - 1, float(layer.grid.max()) + 1
    x = torch.linspace(low, high, 997, dtype=torch.float64)[:, None].expand(-1, 3)
    x = torch.cat([x, layer.grid.T])  # inside, at the knots, in the ends' tapers, and beyond
    expected, curves, parameter = layer(x), spline_curves(layer, x), layer.spline_weight
    refine_grid(layer, finer)
    assert layer.grid_size == finer
    assert layer.spline_weight is parameter
    assert layer.spline_weight.shape == (2, 3, finer + order)
    np.testing.assert_allclose(spline_curves(layer, x), curves, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("finer", [6, 8, 11])
def test_refining_to_any_other_grid_is_the_least_squares_best(finer: int) -> None:
    x = torch.randn(500, 3)
    layer = random_layer()
    before = spline_curves(layer, x)
    refine_grid(layer, finer, x)
    after = spline_curves(layer, x)
    for feature in range(3):
        a = scipy_basis(x[:, feature].double().numpy(), layer.grid[feature].double().numpy(), 3)
        best = a @ np.linalg.lstsq(a, before[:, feature], rcond=None)[0]
        np.testing.assert_allclose(after[:, feature], best, atol=1e-5)
    assert (layer.grid.diff(dim=-1) > 0).all()


def test_refining_without_samples_keeps_the_function_nearly() -> None:
    layer = random_layer()
    x = torch.linspace(-2, 2, 200)[:, None].expand(-1, 3)
    before = spline_curves(layer, x)
    refine_grid(layer, 23)
    after = spline_curves(layer, x)
    assert np.abs(after - before).max() < 0.02 * np.abs(before).max()


def test_changes_that_cannot_be_done_change_nothing() -> None:
    layer = random_layer()
    state = state_of(layer)
    with pytest.raises(ValueError, match="smaller than the present 5"):
        refine_grid(layer, 4)
    for knots, message in (
        (layer.grid[:2], "shape"),
        (layer.grid[:, :7], "shape"),
        (layer.grid.flip(1), "increasing"),
        (layer.grid * torch.nan, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            change_grid(layer, knots)
    with pytest.raises(ValueError, match="finite"):
        refine_grid(layer, 8, torch.full((9, 3), torch.nan))
    assert_equal_states(layer, state)


def test_a_follower_on_the_same_knots_computes_the_same() -> None:
    """As the moving average of a model's weights must."""
    layer = random_layer()
    follower = copy.deepcopy(layer)
    x = torch.randn(300, 3)
    layer.update_grid(x)
    change_grid(follower, layer.grid, x)
    assert_equal_states(follower, layer.state_dict())


# ---- optimizers ----


def trained(layer: KANLinear, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    x = torch.linspace(-2, 2, 60).reshape(20, 3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (layer(x) - x.sum(dim=1, keepdim=True).sin()).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


CHANGES: dict[str, Callable[[KANLinear, torch.optim.Optimizer], object]] = {
    "update": lambda layer, o: layer.update_grid(torch.randn(99, 3), optimizer=o),
    "calibrate": lambda layer, o: calibrate_grid(layer, torch.randn(99, 3), optimizer=o),
    "refine": lambda layer, o: refine_grid(layer, 15, optimizer=o),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop"])
def test_an_optimizer_starts_anew_for_changed_splines_only(name: str, change: str) -> None:
    layer = random_layer()
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.01, **options)
    trained(layer, optimizer)
    kept = copy.deepcopy(optimizer.state[layer.base_weight])
    CHANGES[change](layer, optimizer)
    assert layer.spline_weight.grad is None
    assert kept.keys() == optimizer.state[layer.base_weight].keys()
    other = copy.deepcopy(layer)
    fresh = getattr(torch.optim, name)([other.spline_weight], lr=0.01, **options)
    trained(layer, optimizer, 1)
    trained(other, fresh, 1)
    torch.testing.assert_close(layer.spline_weight, other.spline_weight)


def test_a_loss_that_is_still_alive_does_not_stop_training_on_a_finer_grid() -> None:
    network = KAN([3, 4, 2])
    optimizer = torch.optim.Adam(network.parameters())
    x = torch.randn(50, 3)
    for step in range(4):
        optimizer.zero_grad()
        loss = network(x).square().mean()
        loss.backward()
        optimizer.step()
        if step == 1:
            for layer in network.layers:
                refine_grid(layer, 10, optimizer=optimizer)
    assert loss.isfinite()
    assert all(layer.spline_weight.shape[-1] == 13 for layer in network.layers)


@pytest.mark.parametrize("change", CHANGES)
def test_lbfgs_goes_on_downhill(change: str) -> None:
    layer = random_layer()
    optimizer = torch.optim.LBFGS(layer.parameters(), line_search_fn="strong_wolfe")
    trained(layer, optimizer)
    CHANGES[change](layer, optimizer)
    x = torch.linspace(-2, 2, 60).reshape(20, 3)

    @torch.no_grad()
    def loss() -> float:
        return float((layer(x) - x.sum(dim=1, keepdim=True).sin()).square().mean())

    before = loss()
    trained(layer, optimizer)
    assert loss() < before


# ---- whole models ----


def test_the_layers_with_splines_of_a_model_are_found_by_name() -> None:
    names = {"kan": ["mlp.fc1", "mlp.fc2"], "group-kan": ["mlp.fc1", "mlp.fc2"], "mlp": []}
    for ffn, layers in names.items():
        model = create_model(
            "kansformer_micro", img_size=16, patch_size=4, num_classes=3, depth=2, ffn=ffn
        )
        expected = [f"blocks.{block}.{layer}" for block in range(2) for layer in layers]
        assert list(spline_layers(model)) == expected
    assert list(spline_layers(irregular_layer(3, 2, 3))) == [""]


def test_a_model_without_a_kan_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no KAN layer"):
        fit_grids(torch.nn.Linear(3, 2), torch.randn(8, 3))


def test_every_layer_of_a_model_is_fitted_to_what_reaches_it() -> None:
    model = create_model("kansformer_micro", img_size=16, patch_size=4, num_classes=3, depth=2)
    pictures = torch.randn(8, 3, 16, 16) * 5
    seen: dict[KANLinear, Tensor] = {}
    model.train().norm.eval()
    fit_grids(model, pictures)
    assert model.training
    assert not model.norm.training
    layers = [module for module in model.modules() if isinstance(module, KANLinear)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, args: seen.update({layer: args[0]}))
    model.eval()(pictures)
    assert len(seen) == len(layers) == 4
    for layer, x in seen.items():
        low, high = layer.grid[:, 3], layer.grid[:, -4]
        inside = ((x >= low - 1e-5) & (x <= high + 1e-5)).float().mean(dim=(0, 1))
        assert (inside >= 0.98).all()
        assert (inside < 1).any()


def test_a_model_of_which_one_layer_cannot_be_fitted_stays_as_it_is() -> None:
    network = KAN([3, 4, 2])
    with torch.no_grad():  # the second layer gets constants
        network.layers[0].base_weight.zero_()
        network.layers[0].spline_weight.zero_()
    state = state_of(network)
    with pytest.raises(ValueError, match="too few distinct"):
        fit_grids(network, torch.randn(100, 3), lambda layer, x: refine_and_update(layer, x))
    assert_equal_states(network, state)


def refine_and_update(layer: KANLinear, x: Tensor) -> None:
    refine_grid(layer, 10)
    layer.update_grid(x)


def test_kan_updates_its_grids_layer_by_layer() -> None:
    network = KAN([3, 5, 2])
    x = torch.randn(200, 3)
    grids = [layer.grid.clone() for layer in network.layers]
    network(x, update_grid=True)
    assert all(
        not torch.equal(layer.grid, grid) for layer, grid in zip(network.layers, grids, strict=True)
    )


# ---- many processes ----


def _update_on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    layer = KANLinear(3, 4)
    layer.load_state_dict(torch.load(f"{folder}/layer.pt"))
    samples = torch.load(f"{folder}/samples.pt")
    mine = samples[:150] if rank == 0 else samples[150:]
    refine_grid(layer, 8, mine)
    layer.update_grid(mine)
    with pytest.raises(ValueError, match="finite"):  # on both, though only one rank has the NaN
        layer.update_grid(mine if rank == 0 else mine * torch.nan)
    torch.save(layer.state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_end_equal_and_as_one_process_with_all_samples(tmp_path: Path) -> None:
    layer, samples = random_layer(), torch.randn(250, 3)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    torch.save(samples, tmp_path / "samples.pt")
    torch.multiprocessing.spawn(_update_on_a_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    refine_grid(layer, 8, samples)
    layer.update_grid(samples)
    for name, value in layer.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-5)


def test_irregular_layers_can_be_changed_too() -> None:
    layer = irregular_layer(3, 2, 3)
    x = torch.randn(200, 3, dtype=torch.float64)
    before = layer(x).detach()
    refine_grid(layer, 10)
    torch.testing.assert_close(layer(x).detach(), before, rtol=0, atol=1e-10)
