"""Laws of pruning: masked equals removed, and what is kept computes the same."""

import torch
from torch import Tensor

from kansformer.symbolic import (
    SymbolicKAN,
    create_dataset,
    feature_score,
    fit,
    prune,
    prune_edge,
    prune_input,
    prune_node,
    symbolic_formula,
)
from tests.kansformer.symbolic.networks import assert_same, box, network


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
