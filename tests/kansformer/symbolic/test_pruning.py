"""Laws of surgery: masked equals removed, and what is kept computes the same."""

import pytest
import torch
from torch import Tensor

from kansformer.symbolic import (
    FUNCTIONS,
    SymbolicKAN,
    attribute,
    create_dataset,
    feature_score,
    fit,
    fix_symbolic,
    prune,
    prune_edge,
    prune_input,
    prune_node,
    refine,
    suggest_symbolic,
    symbolic_formula,
    unfix_symbolic,
)
from tests.kansformer.symbolic.test_symbolic_kan import assert_same, box, network


def test_masked_equals_removed() -> None:
    model, x = network((2, 4, 1)), box()
    kept = prune_node(model, x, keep=[[1, 3]])
    masked = prune_edge(model, x, cut=[(1, 0, 0), (1, 2, 0)])
    assert [w[0] for w in kept.width] == [w[0] for w in masked.width] == [2, 2, 1]
    assert_same(kept, masked, x)
    mean = model(x).mean() - kept(x).mean()
    assert abs(float(mean.detach())) < 1e-12  # what is cut leaves its mean behind
    assert [w[0] for w in model.width] == [2, 4, 1]  # the model given is as it was


def test_a_product_node_goes_with_both_its_sums() -> None:
    model, x = network((2, (1, 2), 1)), box()
    kept = prune_node(model, x, keep=[[0, 2]])
    assert kept.width == [(2, 0), (1, 1), (1, 0)]
    assert kept.layers[0].out_features == 3
    rows = [0, 3, 4]
    torch.testing.assert_close(kept.layers[0].affine, model.layers[0].affine[rows])


def test_unused_parts_are_found_and_removed() -> None:
    def f(x: Tensor) -> Tensor:
        return x[:, 0] ** 2 + 0 * x[:, 1]

    dataset = create_dataset(f, 3, train_num=300, test_num=50)
    model = SymbolicKAN([3, 3, 1], seed=0, grid_size=3)
    fit(model, dataset, steps=40, lamb=1e-2, progress=False)
    scores = feature_score(model, dataset)
    assert scores[0] > 0.5
    assert scores[1:].max() < 0.05
    pruned = prune_input(prune(model, dataset, 0.1, 0.1), dataset, 0.1)
    assert pruned.inputs.tolist() == [0]
    assert pruned.layers[0].in_features == 1
    assert feature_score(pruned, dataset)[1:].tolist() == [0, 0]
    x = dataset["test_input"]
    other = torch.cat([x[:, :1], x[:, 1:] * 0], dim=1)
    assert torch.equal(pruned(x), pruned(other))
    assert float((pruned(x) - dataset["test_label"]).detach().abs().max()) < 0.2
    assert {str(s) for s in symbolic_formula(pruned)[0].free_symbols} == {"x_1"}


def test_scores_of_outputs_are_one_and_flow_back() -> None:
    model, x = network(), box()
    scores = attribute(model, x)
    assert [len(nodes) for nodes in scores.nodes] == [2, 3, 2, 2]
    assert scores.nodes[-1].tolist() == [1, 1]
    assert all((edges >= 0).all() for edges in scores.edges)
    assert scores.edges[0][0, 1] == 0  # cut


@pytest.mark.parametrize("grid", [4, 7, 8, 10, 40])
def test_refining_keeps_the_function(grid: int) -> None:
    model, x = network(), box() * 1.3
    fine = refine(model, grid)
    assert all(layer.kan.grid_size == grid for layer in fine.layers)
    assert_same(fine, model, x)
    assert model.layers[0].kan.grid_size == 4


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "0"])
def test_fixing_recovers_a_function_to_the_last_digits(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        return 0.6 * FUNCTIONS[name].evaluate(0.8 * x[:, 0] + 0.1) - 2

    dataset = create_dataset(f, 1, (0.1, 1), train_num=200, test_num=50)
    model = SymbolicKAN([1, 1], seed=0, grid_size=20, grid_range=(0, 1.1))
    fit(model, dataset, steps=10, progress=False)
    model = fix_symbolic(model, 0, 0, 0, name, dataset)
    history = fit(model, dataset, steps=60, progress=False)
    assert history["test_rmse"][-1] < 1e-12
    spline = unfix_symbolic(model, 0, 0, 0)
    assert not spline.layers[0].fixed.any()
    assert_same(spline, model, dataset["test_input"], 3e-3)


def test_suggestions_put_the_simplest_of_what_fits_first() -> None:
    x = box(200, 1)
    model = SymbolicKAN([1, 1], seed=0, grid_size=12)
    dataset = create_dataset(lambda x: 3 * x[:, 0] + 1, 1, train_num=200)
    fit(model, dataset, steps=10, progress=False)
    best = suggest_symbolic(model, 0, 0, 0, x)
    assert best[0].name == "x"
    assert best[0].r2 == pytest.approx(1)
