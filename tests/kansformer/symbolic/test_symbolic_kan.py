"""Laws of the network: it computes what its edges say, and never a NaN."""

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor, nn

from kansformer.symbolic import (
    SymbolicKAN,
    auto_symbolic,
    create_dataset,
    ex_round,
    feature_score,
    find_formula,
    fit,
    fix_symbolic,
    load,
    plot,
    prune,
    prune_edge,
    prune_input,
    prune_node,
    refine,
    save,
    symbolic_formula,
)
from models.kan import KAN
from tests.kansformer.symbolic.networks import assert_same, box, hello, network


def test_a_wrapped_kan_computes_the_same_and_is_a_copy() -> None:
    kan = KAN([2, 4, 3]).double()
    wrapped, x = SymbolicKAN.of(kan), box()
    assert_same(wrapped, kan, x)
    assert_same(wrapped, kan, x.view(3, 100, 2))
    assert_same(SymbolicKAN.of(kan.layers[0]), kan.layers[0], x)
    with torch.no_grad():
        wrapped.layers[0].kan.base_weight.zero_()
    assert not torch.allclose(wrapped(x), kan(x))
    with pytest.raises(TypeError, match="not Linear"):
        SymbolicKAN.of(nn.Linear(2, 2))


def test_products_multiply_pairs_of_sums() -> None:
    model = SymbolicKAN([2, (0, 1)], seed=0)
    for source, target in ((0, 0), (1, 1)):
        model = fix_symbolic(model, 0, source, target, "x", affine=(1, 1, 0, 0))
    model = prune_edge(model, cut=[(0, 1, 0), (0, 0, 1)])
    with torch.no_grad():
        model.layers[0].bias.zero_()
    x = box()
    torch.testing.assert_close(model(x)[:, 0], x[:, 0] * x[:, 1])
    assert str(ex_round(symbolic_formula(model)[0])) == "x_1*x_2"


def test_seeds_and_drawing_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    width = [2, 3, 1]
    model = SymbolicKAN(width, seed=0)
    dataset = create_dataset(hello, 2, train_num=50, test_num=10)
    fit(model, dataset, "Adam", 2, batch=10, progress=False)
    fit(model, dataset, steps=2, progress=False)
    model = auto_symbolic(prune(model, dataset), dataset, ["x"], trials=1)
    plot(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert width == [2, 3, 1]
    assert torch.equal(SymbolicKAN(width, seed=1)(box()), SymbolicKAN(width, seed=1)(box()))


def test_networks_made_in_threads_are_those_made_alone() -> None:
    def made(seed: int) -> list[Tensor]:
        return list(SymbolicKAN([3, 5, 5, 1], seed=seed).state_dict().values())

    seeds = list(range(8)) * 20
    alone = [made(seed) for seed in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(made, seeds))
    finally:
        sys.setswitchinterval(before)
    for seed, tensors in zip(seeds, together, strict=True):
        assert all(torch.equal(*pair) for pair in zip(alone[seed], tensors, strict=True))


@pytest.mark.parametrize("n", [np.int64, np.uint8])
def test_numbers_may_be_numpys(n: type, tmp_path: Path) -> None:
    def made(n: type, real: type, listed: Callable[[list], Sequence]) -> tuple[SymbolicKAN, dict]:
        dataset = create_dataset(hello, n(2), listed([-1, 1]), n(30), n(10), seed=n(3))
        model = SymbolicKAN(listed([2, 3, 1]), seed=n(4), grid_size=n(3), spline_order=n(2))
        history = fit(model, dataset, "Adam", n(2), batch=n(8), seed=n(5), lr=real(0.1),
                      lamb=real(0.5), progress=False)  # fmt: skip
        model = prune_node(model, dataset, keep=[listed([0, 2])])
        model = prune_input(model, dataset, keep=listed([0]))
        model = refine(SymbolicKAN.of(model), n(200))
        save(tmp_path / "model.safetensors", model)
        return load(tmp_path / "model.safetensors"), history

    model, history = made(
        n, np.float64, lambda values: np.array(values, np.int16 if -1 in values else n)
    )
    expected, expected_history = made(int, float, list)
    assert history == expected_history
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    pairs = SymbolicKAN([n(2), (n(1), n(1)), n(1)], seed=0)
    assert pairs.width == [(2, 0), (1, 1), (1, 0)]


def test_bad_arguments_say_what_is_wrong() -> None:
    model, dataset = SymbolicKAN([2, 1], seed=0), create_dataset(hello, 2, train_num=9, test_num=9)
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: SymbolicKAN([2]), "width"),
        (lambda: SymbolicKAN([(1, 1), 1]), "inputs cannot"),
        (lambda: SymbolicKAN([2, 1], names=["x", "x"]), "different names"),
        (lambda: model(torch.zeros(4, 3)), "last dimension"),
        (lambda: create_dataset(hello, 2, (1, -1)), "low < high"),
        (lambda: create_dataset(hello, 2, [(0, 1)] * 3), "one pair"),
        (lambda: create_dataset(hello, 2, train_num=0), "positive"),
        (lambda: create_dataset(lambda x: x[:, 0].log(), 1), "finite"),
        (lambda: create_dataset(lambda x: x.sum(), 1), "must map"),
        (lambda: fit(model, dataset, "SGD"), "LM, LBFGS, Adam"),
        (lambda: fit(model, dataset, batch=3), "LM takes all"),
        (lambda: fit(model, {**dataset, "train_label": dataset["test_input"]}), "labels"),
        (lambda: fit(model, {**dataset, "train_label": torch.full((9, 1), torch.nan)}), "finite"),
        (lambda: refine(model, 2), "coarser"),
        (lambda: prune_edge(model, cut=[(0, 2, 0)]), "not from 2 to 0"),
        (lambda: prune_edge(model, cut=[(1, 0, 0)]), "the layers are"),
        (lambda: prune_node(SymbolicKAN([2, 3, 1]), keep=[[3]]), "has nodes 0 to 2"),
        (lambda: prune_input(model, keep=[2]), "in use"),
        (lambda: fix_symbolic(model, 0, 0, 0, "sinh"), "no function is called 'sinh'"),
        (lambda: fix_symbolic(model, 0, 0, 0, "x", torch.ones(5, 2)), "constant"),
        (lambda: fix_symbolic(model, 0, 0, 0, "x", affine=(1,)), "four finite numbers"),
        (lambda: fix_symbolic(model, 0, 0, 0, "x", affine=(1, math.nan, 0, 0)), "four finite"),
        (lambda: fix_symbolic(network(), 0, 1, 0, "x", affine=(1, 1, 0, 0)), "is cut"),
        (lambda: fit(model, dataset, "Adam", lr=0.0), "lr must be above 0"),
        (lambda: fit(model, dataset, lamb=-1.0), "at least 0"),
        (lambda: fit(model, dataset, lamb_coef=math.nan), "at least 0"),
        (lambda: find_formula(dataset, shapes=[]), "a shape"),
        (lambda: symbolic_formula(model, ["x"]), "2 names"),
    ]
    for action, message in wrong:
        with pytest.raises(ValueError, match=message):
            action()


@pytest.mark.parametrize(
    "case", ["constant inputs", "constant labels", "20 samples", "1 sample", "dead edges"]
)
def test_nothing_is_nan(case: str) -> None:
    count = {"20 samples": 20, "1 sample": 1}.get(case, 100)
    dataset = create_dataset(hello, 2, train_num=count, test_num=30)
    if case == "constant inputs":
        for part in ("train_input", "test_input"):
            dataset[part] = dataset[part].clone()  # type: ignore[literal-required]
            dataset[part][:, 1] = 0.3  # type: ignore[literal-required]
    if case == "constant labels":
        dataset["train_label"] = torch.ones_like(dataset["train_label"])
    model = SymbolicKAN([2, 2, 1], seed=0, grid_size=3)
    if case == "dead edges":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    for opt in ("LM", "LBFGS", "Adam"):
        history = fit(
            model, dataset, opt, 3, lamb=1e-2, lamb_coef=1e-3, lamb_coefdiff=1e-3, progress=False
        )
        assert all(math.isfinite(v) for values in history.values() for v in values)
    for number, other in enumerate((prune(model, dataset), prune(model, dataset, 2, 2))):
        other = refine(other, 10)
        fit(other, dataset, steps=3, progress=False)
        other = auto_symbolic(other, dataset, ("x", "x^2", "log", "1/x"), trials=3)
        fit(other, dataset, steps=3, progress=False)
        y = other(torch.linspace(-50, 50, 101, dtype=torch.float64)[:, None].expand(-1, 2))
        assert y.isfinite().all(), number
        assert all(p.isfinite().all() for p in other.state_dict().values())
        assert symbolic_formula(other)[0].has(sympy.nan, sympy.oo, sympy.zoo) is False
        assert feature_score(other, dataset).isfinite().all()
