"""Weights that are computed from other tensors are never written to: the change would be lost."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from kansformer.interpret.block_pruning import (
    compact,
    refit,
    remove_edges,
    without_splines,
)
from kansformer.interpret.block_refinement import refine_blocks
from kansformer.interpret.edge_formulas import project_functions
from kansformer.symbolic import SymbolicKAN, create_dataset, fit, refine
from kansformer.symbolic import prune as prune_symbolic
from kansformer.symbolic.fitting import move_grids
from models import kan_grid
from models.kan import KAN, GroupKANLinear, KANLinear
from models.kan_variants import SparseKAN
from models.vit_model import create_model

Change = Callable[[nn.Module, str], object]


def weight_norm_by_hooks(layer: nn.Module, name: str) -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(layer, name)


def undo_parametrization(layer: nn.Module, name: str) -> None:
    parametrize.remove_parametrizations(layer, name)


# how a weight comes to be computed, how that is undone, and what the text names for it
WAYS: dict[str, tuple[Change, Change, str]] = {
    "weight norm": (parametrizations.weight_norm, undo_parametrization, "remove_parametrizations"),
    "spectral norm": (
        parametrizations.spectral_norm, undo_parametrization, "remove_parametrizations"
    ),
    "weight norm by hooks": (
        weight_norm_by_hooks, nn.utils.remove_weight_norm, "remove_weight_norm"
    ),
    "spectral norm by hooks": (
        nn.utils.spectral_norm, nn.utils.remove_spectral_norm, "remove_spectral_norm"
    ),
    "pruning": (
        lambda layer, name: prune.random_unstructured(layer, name, 0.5), prune.remove,
        "prune.remove",
    ),
}  # fmt: skip
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
X = torch.linspace(-2, 2, 400).view(200, 2)


def moved_later(layer: nn.Module) -> None:
    """Fits the second of two layers after the first."""
    kan_grid.fit_grids(nn.Sequential(KANLinear(2, 2), layer), X)


GRID_CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "update_grid": lambda layer: layer.update_grid(X),
    "calibrate_grid": lambda layer: kan_grid.calibrate_grid(layer, X),
    "refine_grid": lambda layer: kan_grid.refine_grid(layer, 9),
    "change_grid": lambda layer: kan_grid.change_grid(layer, 2 * layer.grid, X),
    "fit_grids": moved_later,
    "resize_grids": lambda layer: kan_grid.resize_grids(
        layer, {"spline_weight": torch.zeros(*layer.spline_weight.shape[:-1], 12)}
    ),
}


@each_way
@pytest.mark.parametrize("change", GRID_CHANGES.values(), ids=GRID_CHANGES)
@pytest.mark.parametrize("kind", [KANLinear, lambda *size: GroupKANLinear(*size, groups=2)])
def test_a_grid_stays_or_moves_with_its_weights(
    kind: Callable[..., nn.Module], change: Callable, way: tuple[Change, Change, str]
) -> None:
    layer = kind(2, 2)
    nn.init.normal_(layer.spline_weight)
    apply, undo, words = way
    apply(layer, "spline_weight")
    layer.eval()
    before, y = {n: t.clone() for n, t in layer.state_dict().items()}, layer(X)
    with pytest.raises(ValueError, match=words) as caught:
        change(layer)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(layer(X), y)
    undo(layer, "spline_weight")
    change(layer)
    layer(X)


def test_other_weights_may_be_computed() -> None:
    layer = KANLinear(2, 2)
    parametrizations.weight_norm(layer, "base_weight")
    prune.random_unstructured(layer, "spline_scaler", 0.5)
    y = layer(X)
    kan_grid.refine_grid(layer, 10)
    torch.testing.assert_close(layer(X), y)


def test_a_kan_is_refused_before_its_first_layer_changes() -> None:
    kan = KAN([2, 3, 1])
    parametrizations.weight_norm(kan.layers[1], "spline_weight")
    grid = kan.layers[0].grid.clone()
    for change in (lambda: kan(X, update_grid=True), lambda: kan_grid.fit_grids(kan, X)):
        with pytest.raises(ValueError, match="remove_parametrizations"):
            change()
        assert torch.equal(kan.layers[0].grid, grid)


NAMES = ("base_weight", "spline_weight", "spline_scaler")
VIT = {"img_size": 8, "patch_size": 4, "depth": 1, "num_classes": 2, "kan_hidden": 4}


@each_way
@pytest.mark.parametrize("name", NAMES)
def test_surgery_on_small_networks_is_refused(name: str, way: tuple[Change, Change, str]) -> None:
    data = create_dataset(lambda x: x.sum(dim=1), 2, train_num=20, test_num=5)
    x = data["train_input"]
    kan, sparse = KAN([2, 3, 1]), SparseKAN([2, 3, 1])
    for layer in (kan.layers[1], sparse.layers[1]):
        way[0](layer, name)
    kan(x.float())  # hooks have left a tensor that cannot be copied
    sparse(x.float())
    for change in (
        lambda: SymbolicKAN.of(kan),
        lambda: fit(kan, data, steps=1, progress=False),
        lambda: prune_symbolic(kan, data),
        lambda: refine(kan, 10),
        lambda: sparse.pruned(x.float()),
    ):
        with pytest.raises(ValueError, match=way[2]):
            change()


def test_surgery_on_a_symbolic_network_is_refused() -> None:
    data = create_dataset(lambda x: x.sum(dim=1), 2, train_num=20, test_num=5)
    own = SymbolicKAN([2, 3, 1], seed=0)
    parametrizations.weight_norm(own.layers[0].kan, "spline_weight")
    for opt in ("LM", "Adam"):
        with pytest.raises(ValueError, match="remove_parametrizations"):
            fit(own, data, opt, 1, progress=False)
    for change in (
        lambda: prune_symbolic(own, data), lambda: move_grids(own, data["train_input"])
    ):  # fmt: skip
        with pytest.raises(ValueError, match="remove_parametrizations"):
            change()


@each_way
@pytest.mark.parametrize(("ffn", "name"), [*(("kan", n) for n in NAMES), ("mlp", "weight")])
def test_surgery_on_a_vit_is_refused(ffn: str, name: str, way: tuple[Change, Change, str]) -> None:
    model = create_model("kansformer_micro", **VIT, ffn=ffn)
    way[0](model.blocks[0].mlp.fc2, name)
    model(torch.zeros(1, 3, 8, 8))
    units = [torch.arange(model.config.block_widths[0])]
    changes = [
        lambda: compact(model, units), lambda: refit(model, []),
        lambda: remove_edges(model, [], 0.5), lambda: without_splines(model),
        lambda: project_functions(model, [], {}),
    ]  # fmt: skip
    if ffn == "kan":
        changes.append(lambda: refine_blocks(model, 10))
    for change in changes:
        with pytest.raises(ValueError, match=way[2]):
            change()
