"""Laws of small KANs that are read: surgery keeps the function, formulas are exact, no NaN ever."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor, nn

from kansformer.errors import UserError
from kansformer.interpret import (
    FUNCTIONS,
    Dataset,
    SymbolicKAN,
    attribute,
    auto_symbolic,
    create_dataset,
    ex_round,
    feature_score,
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
    suggest_symbolic,
    symbolic_formula,
    unfix_symbolic,
)  # fmt: skip
from kansformer.interpret.fitting import Objective, move_grids
from kansformer.interpret.functions import value_and_slopes
from kansformer.interpret.trace import ActiveParameters, trace
from models.kan import KAN


def hello(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1] ** 2)


def box(count: int = 300, width: int = 2, seed: int = 0) -> Tensor:
    return create_dataset(lambda x: x.sum(dim=1), width, train_num=count, seed=seed)["train_input"]


def network(width: tuple = (2, 3, (1, 1), 2), **options: object) -> SymbolicKAN:
    """Random, with a cut edge, formulas and products."""
    model = SymbolicKAN(width, seed=3, grid_size=4, **options)
    with torch.no_grad():
        for layer in model.layers:
            layer.kan.spline_weight.normal_(0, 0.3)
    x = box(width=len(model.names))
    move_grids(model, x)
    model = prune_edge(model, x, cut=[(0, 1, 0)])
    model = fix_symbolic(model, 0, 0, 1, "sin", x)
    return fix_symbolic(model, 1, 1, 0, "tanh", x)


def assert_same(a: nn.Module, b: nn.Module, x: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=tolerance)


# ---- the network ----


def test_a_wrapped_kan_computes_the_same_and_is_a_copy() -> None:
    kan = KAN([2, 4, 3]).double()
    own, x = SymbolicKAN.of(kan), box()
    assert_same(own, kan, x)
    assert_same(own, kan, x.view(3, 100, 2))
    with torch.no_grad():
        own.layers[0].kan.base_weight.zero_()
    assert not torch.allclose(own(x), kan(x))
    with pytest.raises(TypeError, match="not Linear"):
        SymbolicKAN.of(nn.Linear(2, 2))


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Tanh, nn.ELU])
def test_edges_sum_to_the_layers_output(activation: Callable[[], nn.Module]) -> None:
    model, x = network(base_activation=activation), box()
    y, layers = trace(model, x)
    torch.testing.assert_close(y, model(x), rtol=0, atol=1e-12)
    for part in layers:
        edges = part.layer.edge_values(part.x)
        sums = edges.sum(dim=2) + part.layer.bias
        torch.testing.assert_close(sums, part.sums, rtol=0, atol=1e-12)
        torch.testing.assert_close(part.deviations(), edges.std(dim=0), rtol=1e-9, atol=1e-9)


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
        (lambda: symbolic_formula(model, ["x"]), "2 names"),
    ]
    for action, message in wrong:
        with pytest.raises(ValueError, match=message):
            action()


# ---- fitting ----


def test_jacobian_and_gradient_are_those_of_finite_differences() -> None:
    model, x = network(), box(12)
    active = ActiveParameters(model)
    theta = active.read()
    y, layers = trace(model, x)
    jacobian = active.jacobian(y, layers)
    objective = Objective(model, x, torch.zeros_like(y), 0.1, 1.0, 2.0)
    gradient, curvature = objective.quadratic(active)
    assert (torch.linalg.eigvalsh(curvature) > -1e-9).all()
    for k in range(0, len(theta), 7):
        step = 1e-6 * torch.eye(len(theta), dtype=theta.dtype)[k]
        values, losses = [], []
        for sign in (1, -1):
            active.write(theta + sign * step)
            values.append(model(x).detach())
            losses.append(float(objective.loss()[0].detach()))
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close(jacobian[..., k], slope, rtol=1e-5, atol=1e-7)
        assert gradient[k] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_of_functions(name: str) -> None:
    x = torch.linspace(0.1, 0.8, 20, dtype=torch.float64)
    affine = torch.tensor([0.7, 0.9, 0.05, -0.3], dtype=torch.float64, requires_grad=True)
    value, slopes = value_and_slopes(name, x, affine)
    a, b, c, d = affine
    expected = a * FUNCTIONS[name].evaluate(b * x + c) + d
    torch.testing.assert_close(value, expected.detach())
    for n in (0, 7, 19):
        (grad,) = torch.autograd.grad(expected[n], affine, retain_graph=True)
        torch.testing.assert_close(slopes[n], grad)
    symbol = sympy.Symbol("x")
    formula = sympy.lambdify(symbol, FUNCTIONS[name].in_sympy(symbol))(x.numpy())
    np.testing.assert_allclose(FUNCTIONS[name].evaluate(x).numpy(), formula, rtol=1e-12)
    everywhere = torch.tensor([-1e300, -700, -1, 0, 1e-300, 1, 700, 1e300], dtype=torch.float64)
    if name not in ("x^2", "x^3", "x^4", "x^5"):
        assert FUNCTIONS[name].evaluate(everywhere).isfinite().all()


@pytest.mark.parametrize("opt", ["LM", "LBFGS", "Adam"])
def test_every_optimiser_lowers_the_error_and_keeps_a_record(opt: str) -> None:
    dataset = create_dataset(hello, 2, train_num=200, test_num=50)
    model = SymbolicKAN([2, 2, 1], seed=0, grid_size=3)
    steps = {"LM": 12, "LBFGS": 5, "Adam": 60}[opt]
    batch = {"batch": 50, "lr": 0.05} if opt == "Adam" else {}
    history = fit(model, dataset, opt, steps, lamb=1e-3, progress=False, **batch,
                  metrics={"edges": lambda m: m.edge_count()})  # fmt: skip
    assert history["train_rmse"][-1] < 0.5 * float(dataset["train_label"].std())
    assert history.keys() == {"train_rmse", "test_rmse", "reg", "edges"}
    assert len(history["reg"]) == steps
    assert history["edges"] == [6.0] * steps
    with torch.no_grad():
        error = (model(dataset["test_input"]) - dataset["test_label"]).square().mean().sqrt()
    assert history["test_rmse"][-1] == pytest.approx(float(error))


def test_the_bar_shows_both_errors(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = create_dataset(hello, 2, train_num=50, test_num=50)
    fit(SymbolicKAN([2, 1], seed=0), dataset, steps=2)
    assert capsys.readouterr() == ("", "")
    fit(SymbolicKAN([2, 1], seed=0), dataset, steps=2, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(word in shown.err for word in ("train_rmse", "test_rmse", "reg"))


def test_a_plain_kan_is_trained_in_place() -> None:
    dataset = create_dataset(hello, 2, train_num=200, test_num=50)
    model = KAN([2, 2, 1], grid_size=3)
    names = set(model.state_dict())
    history = fit(model, dataset, steps=15, progress=False)
    error = (model(dataset["test_input"].float()) - dataset["test_label"]).square().mean().sqrt()
    assert float(error.detach()) == pytest.approx(history["test_rmse"][-1], rel=1e-3)
    assert history["test_rmse"][-1] < 0.5
    assert set(model.state_dict()) == names


def test_only_training_data_is_looked_at() -> None:
    dataset = create_dataset(hello, 2, train_num=100, test_num=100)
    other: Dataset = {**dataset, "test_input": dataset["test_input"] * 9 + 5}  # type: ignore
    results = []
    for data in (dataset, other):
        model = SymbolicKAN([2, 3, 1], seed=0, grid_size=3)
        fit(model, data, steps=12, lamb=3e-3, progress=False)
        model = auto_symbolic(prune(model, data, 0.1, 0.1), data, trials=3)
        results.append(model)
    assert [e.name for e in results[0].report] == [e.name for e in results[1].report]
    states = [result.state_dict().values() for result in results]
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)


# ---- surgery ----


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
    assert [s.name for s in best][:1] != ["sin"]


# ---- reading ----


def test_the_walk_ends_at_the_formula() -> None:
    dataset = create_dataset(hello, 2, seed=0)
    model = SymbolicKAN([2, 5, 1], grid_size=3, seed=0)
    fit(model, dataset, steps=50, lamb=3e-3, progress=False)
    model = prune(model, dataset, 0.1, 0.1)
    fit(model, dataset, steps=20, progress=False)
    model = refine(model, 10)
    fit(model, dataset, steps=20, progress=False)
    model = auto_symbolic(model, dataset)
    assert sorted(edge.name for edge in model.report if edge.reason == "fixed") == [
        "exp", "sin", "x^2",
    ]  # fmt: skip
    with torch.no_grad():
        error = (model(dataset["test_input"]) - dataset["test_label"]).square().mean().sqrt()
    assert float(error) <= 1e-12
    formula = symbolic_formula(model)[0]
    assert str(ex_round(formula)) == "exp(x_2**2 + sin(3.1416*x_1))"
    values = sympy.lambdify(sympy.symbols("x_1 x_2"), formula)(*dataset["test_input"].T.numpy())
    np.testing.assert_allclose(values, model(dataset["test_input"]).detach()[:, 0], atol=1e-12)


def test_a_function_outside_the_library_stays_a_spline_and_is_reported() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.sin(9 * x[:, 0]) * torch.exp(-(x[:, 0] ** 2)) + (2 * x[:, 1]).tanh()

    dataset = create_dataset(f, 2, train_num=300, test_num=50)
    model = SymbolicKAN([2, 1], seed=0, grid_size=20)
    before = fit(model, dataset, steps=20, progress=False)["test_rmse"][-1]
    model = auto_symbolic(model, dataset)
    reasons = {(e.source, e.target): (e.name, e.reason) for e in model.report}
    assert reasons[0, 0] == (None, "no function fits")
    assert reasons[1, 0] == ("tanh", "fixed")
    after = float((model(dataset["test_input"]) - dataset["test_label"]).detach().square().mean())
    assert math.sqrt(after) < 1.1 * before
    assert "phi_0_0_0(x_1)" in str(symbolic_formula(model)[0])
    assert "no function fits" in str(model.report[0])


def test_noise_does_not_hide_the_formula() -> None:
    noise = torch.Generator().manual_seed(0)

    def f(x: Tensor) -> Tensor:
        clean = torch.sin(3 * x[:, 0]) + x[:, 1] ** 2
        return clean + 0.05 * torch.randn(len(x), generator=noise, dtype=x.dtype)

    dataset = create_dataset(f, 2, train_num=500, test_num=50)
    model = SymbolicKAN([2, 1], seed=0, grid_size=5)
    fit(model, dataset, steps=20, progress=False)
    model = auto_symbolic(model, dataset)
    assert [edge.name for edge in model.report] == ["sin", "x^2"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_formulas_evaluate_as_the_network_does(name: str) -> None:
    model = SymbolicKAN([2, 2, 1], seed=0, names=["u", "v"])
    rng = np.random.default_rng(0)
    for layer, source, target in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)):
        affine = [float(p) for p in rng.uniform(0.2, 0.6, 4)]
        model = fix_symbolic(model, layer, source, target, "x", affine=affine)
    for source, affine in ((0, (0.4, 0.2, 0.3, 0.1)), (1, (-0.7, -0.3, 0.9, 0.2))):
        model = fix_symbolic(model, 1, source, 0, name, affine=affine)
    x = box() / 4
    formula = symbolic_formula(model)[0]
    values = sympy.lambdify(sympy.symbols("u v"), formula)(*x.T.numpy())
    np.testing.assert_allclose(values, model(x).detach()[:, 0], rtol=1e-10, atol=1e-10)


def test_equally_good_functions_are_reported_as_ambiguous() -> None:
    # over a piece this flat, cubes and roots and logarithms differ by less than the noise
    noise = torch.Generator().manual_seed(1)

    def f(x: Tensor) -> Tensor:
        return (x[:, 0] + 3).log() + 0.01 * torch.randn(len(x), generator=noise, dtype=x.dtype)

    dataset = create_dataset(f, 1, train_num=300, test_num=50)
    model = SymbolicKAN([1, 1], seed=0, grid_size=3)
    before = fit(model, dataset, steps=10, progress=False)["train_rmse"][-1]
    model = auto_symbolic(model, dataset, ["log", "sqrt", "tanh", "sin"])
    assert [(edge.name, edge.reason) for edge in model.report] == [(None, "ambiguous")]
    error = (model(dataset["train_input"]) - dataset["train_label"]).detach().square().mean()
    assert math.sqrt(error) < 1.05 * before


def test_rounding_makes_whole_numbers_whole() -> None:
    x = sympy.Symbol("x")
    expression = sympy.Float(0.99999999) * x**2 + sympy.Float(1e-9) * x + sympy.Float(3.14159265)
    assert str(ex_round(expression)) == "x**2 + 3.1416"
    assert str(ex_round(expression, 1)) == "x**2 + 3.1"


# ---- files ----


@pytest.mark.parametrize("copied", ["saved", "pickled", "copied", "pruned"])
def test_copies_compute_the_same(copied: str, tmp_path: Path) -> None:
    model, x = network(names=["a", "b"]), box()
    if copied == "saved":
        save(tmp_path / "model.safetensors", model)
        other = load(tmp_path / "model.safetensors")
        assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    elif copied == "pickled":
        other = pickle.loads(pickle.dumps(model))
    elif copied == "copied":
        other = copy.deepcopy(model)
    else:
        other = prune(model, x, 0, 0)
    assert_same(other, model, x)
    assert other.names == ["a", "b"]
    assert [layer.names for layer in other.layers] == [layer.names for layer in model.layers]
    assert other.width == model.width
    fit(other, create_dataset(lambda x: x, 2, train_num=50), steps=1, progress=False)  # usable


def test_a_pruned_and_fixed_network_survives_the_file(tmp_path: Path) -> None:
    model = prune_input(network((3, 2, 1)), box(width=3), keep=[0, 2])
    save(tmp_path / "m", refine(model, 9))
    assert_same(load(tmp_path / "m"), model, box(width=3))


def test_files_that_are_not_ours_are_errors_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a saved network"):
        load(path)
    save(path, network())
    data = path.read_bytes()
    for old, new in ((b"tanh", b"tonh"), (b'\\"grid_size\\": 4', b'\\"grid_size\\": 9'),
                     (b'\\"products\\": 1', b'\\"products\\": 9')):  # fmt: skip
        assert old in data
        path.write_bytes(data.replace(old, new, 1))
        with pytest.raises(UserError, match="not a saved network"):
            load(path)


# ---- nothing is NaN ----


@pytest.mark.parametrize("case", ["constant inputs", "constant labels", "20 samples", "dead edges"])
def test_nothing_is_nan(case: str) -> None:
    dataset = create_dataset(hello, 2, train_num=20 if case == "20 samples" else 100, test_num=30)
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
        history = fit(model, dataset, opt, 3, lamb=1e-2, lamb_coef=1e-3, lamb_coefdiff=1e-3,
                      progress=False)  # fmt: skip
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


# ---- drawing ----


def test_a_drawing_has_a_curve_for_every_edge() -> None:
    model = network()
    figure = plot(model, box(), title="title")
    axes = figure.axes[0]
    assert len(axes.patches) == model.edge_count()
    texts = [text.get_text() for text in axes.texts]
    assert {"sin", "tanh", "$x_{1}$", "$y_{2}$"} <= set(texts)
    assert len(plot(KAN([2, 2, 1])).axes[0].patches) == 6
