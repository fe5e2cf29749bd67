"""The small KANs: each trains, keeps its law, and says what is wrong with its arguments."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.engine.definition import ACTIVATIONS
from models.kan import KAN, GroupKANLinear, KANFeedForward, KANLinear
from models.kan_variants import (
    BASE_ACTIVATIONS,
    CheckpointedKAN,
    DeepKAN,
    Dropout,
    ModularKAN,
    ResidualKAN,
    SparseKAN,
    kan_layer,
)

NAMES = ["a", "b", "c"]
MODULES = {"pair": ["a", "b"], "single": ["c"]}
MAKERS: dict[str, Callable[..., nn.Module]] = {
    "residual": lambda **o: ResidualKAN([3, 5, 5, 1], **o),
    "deep": lambda **o: DeepKAN([3, 5, 5, 1], **o),
    "sparse": lambda **o: SparseKAN([3, 5, 1], **o),
    "modular": lambda **o: ModularKAN(NAMES, MODULES, **o),
    "checkpointed": lambda **o: CheckpointedKAN([3, 5, 5, 1], **o),
}
each_variant = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def samples(count: int = 200) -> tuple[Tensor, Tensor]:
    """A sum of two functions; the third input does nothing."""
    x = torch.rand(count, 3) * 2 - 1
    return x, torch.sin(2 * x[:, :1]) + x[:, 1:2].square()


def minimize(model: nn.Module, x: Tensor, y: Tensor, steps: int = 60) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "make",
    [
        *MAKERS.values(),
        lambda **o: KAN([3, 4, 2], **o),
        lambda **o: KANLinear(3, 4, init="efficient-kan", **o),
        lambda **o: GroupKANLinear(4, 2, groups=2, **o),
        lambda **o: KANFeedForward(4, 6, groups=2, **o),
        lambda **o: KANFeedForward(4, 6, **o),
    ],
)
def test_a_generator_draws_what_the_global_one_would(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(3)
    expected = make().state_dict()
    state = torch.get_rng_state()
    own = make(generator=torch.Generator().manual_seed(3)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], expected[name]) for name in own)


def test_a_generator_draws_dropouts_masks() -> None:
    torch.manual_seed(3)
    expected, x = nn.Dropout(0.3), torch.ones(40, 5, requires_grad=True)
    own = Dropout(0.3, torch.Generator().manual_seed(3))
    for _ in range(2):
        (slope,) = torch.autograd.grad(own(x).sum(), x)
        assert torch.equal(slope, expected(x))
    assert own.eval()(x) is x


@each_variant
@pytest.mark.parametrize("activation", ["silu", None])
def test_each_trains(make: Callable[..., nn.Module], activation: str | None) -> None:
    x, y = samples()
    losses = minimize(make(base_activation=activation), x, y)
    assert losses[-1] < 0.1 * float(y.var())
    assert losses[-1] < 0.5 * losses[0]


@each_variant
@pytest.mark.parametrize("activation", [*BASE_ACTIVATIONS, None])
def test_every_parameter_that_is_trained_has_a_gradient(
    make: Callable[..., nn.Module], activation: str | None
) -> None:
    model = make(base_activation=activation)
    x, y = samples()
    (model(x) - y).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert activation is None
            assert name.endswith("base_weight")


@each_variant
def test_leading_dimensions_are_free(make: Callable[..., nn.Module]) -> None:
    model = make().eval().double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    y = model(x)
    assert y.shape == (4, 6, 1)
    torch.testing.assert_close(y.reshape(24, 1), model(x.reshape(24, 3)), rtol=0, atol=1e-14)


@each_variant
def test_copies_compute_the_same(make: Callable[..., nn.Module]) -> None:
    model = make().eval().double()
    x, y = samples()
    x, y = x.double(), y.double()
    minimize(model, x, y, steps=3)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = make().eval().double()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-10)


@each_variant
def test_constant_inputs_and_few_samples_give_numbers(make: Callable[..., nn.Module]) -> None:
    model = make()
    x = torch.full((20, 3), 0.3)
    losses = minimize(model, x, torch.ones(20, 1), steps=20)
    assert torch.isfinite(torch.tensor(losses)).all()
    assert all(p.isfinite().all() for p in model.parameters())


def test_activations_are_those_of_the_kernels() -> None:
    assert set(BASE_ACTIVATIONS) == set(ACTIVATIONS)
    x = torch.linspace(-20, 20, 9)[:, None]  # where the splines are zero
    for name, (function, _) in ACTIVATIONS.items():
        layer = kan_layer(1, 1, base_activation=name)
        torch.testing.assert_close(layer(x[[0, -1]]), layer.base_weight * function(x[[0, -1]]))


def test_without_a_base_only_splines_are_left() -> None:
    layer = kan_layer(2, 3, base_activation=None)
    assert (layer(torch.full((1, 2), 9.0)) == 0).all()
    x = torch.rand(50, 2) * 2 - 1
    before = layer(x)
    assert before.abs().max() > 0
    minimize(layer, x, torch.ones(50, 3), steps=5)
    assert (layer.base_weight == 0).all()


# ResidualKAN


def test_a_gate_at_zero_is_the_skip() -> None:
    model = ResidualKAN([3, 3, 5, 5, 2], gate=0.0)
    x = torch.randn(7, 3)
    skips = [s.weight for s in model.skips if isinstance(s, nn.Linear)]
    assert [tuple(s.shape) for s in skips] == [(5, 3), (2, 5)]
    torch.testing.assert_close(model(x), x @ skips[0].T @ skips[1].T)
    assert torch.equal(ResidualKAN([3, 3, 3], gate=0.0)(x), x)
    nn.init.ones_(model.gates)
    assert (model(x) - x @ skips[0].T @ skips[1].T).abs().max() > 1e-3


def test_a_gate_weighs_its_layer() -> None:
    model = ResidualKAN([3, 3])
    x = torch.randn(7, 3)
    nn.init.constant_(model.gates, -2.0)
    torch.testing.assert_close(model(x), x - 2 * model.layers[0](x))


# DeepKAN


def test_a_deep_one_keeps_hidden_values_on_the_grid() -> None:
    model = DeepKAN([3, 8, 8, 8, 8, 8, 1])
    seen: list[Tensor] = []
    for layer in model.layers[1:]:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(100 * torch.randn(500, 3))
    for x in seen:
        torch.testing.assert_close(x.mean(dim=-1), torch.zeros(500), rtol=0, atol=1e-4)
        assert (x.abs() <= 3).all()  # of 8 values with mean 0 and deviation 1 none exceeds √7


def test_dropout_acts_in_training_only() -> None:
    model = DeepKAN([3, 64, 1], dropout=0.5)
    x = torch.randn(5, 3)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    plain = DeepKAN([3, 64, 1]).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), model(x))


def test_without_norm_and_dropout_it_is_a_kan() -> None:
    deep, kan = DeepKAN([3, 2, 1], norm=False), KAN([3, 2, 1])
    kan.load_state_dict(deep.state_dict())
    x = torch.randn(20, 3)
    torch.testing.assert_close(deep(x), kan(x))


# SparseKAN


def zero_edges(model: SparseKAN, edges: list[tuple[int, int, int]]) -> None:
    """Removes edges (layer, out, in) by hand."""
    with torch.no_grad():
        for layer, out, into in edges:
            model.layers[layer].base_weight[out, into] = 0
            model.layers[layer].spline_weight[out, into] = 0


def test_sparsity_counts_idle_edges() -> None:
    model = SparseKAN([3, 4, 2], threshold=1e-4)
    x = torch.rand(100, 3) * 2 - 1
    assert model.sparsity(x) == 0
    edges = [(0, 0, 0), (0, 1, 2), (0, 3, 1), (1, 0, 3), (1, 1, 0)]
    zero_edges(model, edges)
    assert model.sparsity(x) == 5 / 20
    for number, idle in enumerate(model.idle_edges(x)):
        wanted = {(out, into) for layer, out, into in edges if layer == number}
        assert {tuple(edge) for edge in idle.nonzero().tolist()} == wanted


def test_the_threshold_is_a_share_of_the_layers_strongest_edge() -> None:
    model = SparseKAN([2, 1], base_activation="identity", threshold=0.1)
    with torch.no_grad():
        model.layers[0].spline_weight.zero_()
        model.layers[0].base_weight.copy_(torch.tensor([[5.0, 0.49]]))
    x = torch.randn(100, 1).expand(100, 2)
    assert model.sparsity(x) == 0.5
    torch.testing.assert_close(
        model.edge_strengths(x)[0], x.std(dim=0) * torch.tensor([[5.0, 0.49]])
    )
    model.threshold = 0.097
    assert model.sparsity(x) == 0


def test_importance_is_the_share_of_the_variance() -> None:
    model = SparseKAN([4, 1], base_activation="identity")
    with torch.no_grad():
        model.layers[0].spline_weight.zero_()
        model.layers[0].base_weight.copy_(torch.tensor([[1.0, 0.0, 2.0, 3.0]]))
    x = torch.randn(500, 4)
    x[:, 3] = 7.0  # constant: it explains nothing
    share = torch.tensor([1.0, 0.0, 4.0, 0.0]) * x.var(dim=0)
    torch.testing.assert_close(model.importance(x), share / share.sum())


def test_importance_finds_the_inputs_that_matter() -> None:
    x, y = samples(400)
    model = SparseKAN([3, 4, 1])
    minimize(model, x, y, steps=200)
    importance = model.importance(x)
    assert float(importance.sum()) == pytest.approx(1)
    assert importance[2] < 0.05 < importance[1] < importance[0]


def test_an_input_that_reaches_no_output_has_no_importance() -> None:
    model = SparseKAN([2, 2, 1])
    zero_edges(model, [(0, 0, 1), (1, 0, 1)])  # input 1 feeds node 1 alone, which is not read
    importance = model.importance(torch.randn(50, 2))
    assert importance.tolist() == [1.0, 0.0]


def test_a_dead_network_gives_zeros_and_no_nan() -> None:
    model = SparseKAN([2, 3, 1])
    with torch.no_grad():
        for layer in model.layers:
            for parameter in layer.parameters():
                parameter.zero_()
    x = torch.randn(20, 2)
    assert model.sparsity(x) == 1
    assert model.importance(x).tolist() == [0, 0]
    assert (model.pruned(x)(x) == 0).all()
    model.group_penalty().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("value", [0.0, 0.3, -5.0])
def test_constant_inputs_leave_every_edge_idle(value: float) -> None:
    model, x = SparseKAN([2, 3, 1]), torch.full((101, 2), value)
    assert model.sparsity(x) == 1
    assert model.importance(x).tolist() == [0, 0]
    torch.testing.assert_close(model.pruned(x)(x), model(x))


def test_splines_without_a_scaler_are_masked_and_pruned_too() -> None:
    model = SparseKAN([3, 4, 1], threshold=0.3, enable_standalone_scale_spline=False).double()
    x = samples()[0].double()
    assert 0 < model.sparsity(x) < 1
    new = model.pruned(x)
    other = copy.deepcopy(new)
    for layer in other.layers:
        layer.mask.fill_(1)  # weights of edges that are cut are zero
    torch.testing.assert_close(new(x), other(x), rtol=0, atol=1e-12)


def test_pruned_edges_are_gone_for_good_and_their_mean_stays() -> None:
    model = SparseKAN([3, 4, 1], threshold=0.3).double()
    x, y = (tensor.double() for tensor in samples())
    idle = torch.cat([edges.flatten() for edges in model.idle_edges(x)])
    assert 0 < idle.sum() < len(idle)
    before, state = model(x), copy.deepcopy(model.state_dict())
    new = model.pruned(x)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for old_layer, layer in zip(model.layers, new.layers, strict=True):
        assert ((layer.mask == 0) <= (old_layer.mask == 1)).all()
    assert sum(int((layer.mask == 0).sum()) for layer in new.layers) == idle.sum()
    assert (new.layers[0](x).mean(dim=0) - model.layers[0](x).mean(dim=0)).abs().max() < 1e-12
    assert not torch.equal(new(x), before)
    minimize(new, x, y, steps=10)
    gone = torch.cat([(layer.mask == 0).flatten() for layer in new.layers])
    assert torch.equal(torch.cat([s.flatten() == 0 for s in new.edge_strengths(x)]), gone)
    assert (new.idle_edges(x)[0] >= (new.layers[0].mask == 0)).all()


def test_pruning_dead_edges_changes_nothing() -> None:
    model = SparseKAN([3, 4, 1]).double()
    zero_edges(model, [(0, 0, 0), (0, 2, 1), (1, 0, 3)])
    x = torch.rand(50, 3, dtype=torch.float64) * 2 - 1
    new = model.pruned(x)
    torch.testing.assert_close(new(3 * x), model(3 * x), rtol=0, atol=1e-12)
    assert sum(int((layer.mask == 0).sum()) for layer in new.layers) == 3


def test_a_masked_edge_is_as_if_its_weights_were_zero() -> None:
    model = SparseKAN([3, 2])
    x = torch.randn(30, 3)
    other = copy.deepcopy(model)
    zero_edges(other, [(0, 1, 2)])
    model.layers[0].mask[1, 2] = 0
    torch.testing.assert_close(model(x), other(x))
    model(x).sum().backward()
    assert model.layers[0].spline_weight.grad[1, 2].abs().sum() == 0
    assert model.layers[0].spline_weight.grad[0, 2].abs().sum() > 0


def test_the_group_penalty_makes_edges_idle() -> None:
    x, y = samples()
    models = [SparseKAN([3, 4, 1], threshold=0.05) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, weight in zip(models, (0.0, 0.02), strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean() + weight * model.group_penalty()
            loss.backward()
            optimizer.step()
    plain, sparse = (model.sparsity(x) for model in models)
    assert sparse >= plain + 0.2


# ModularKAN


def test_modules_see_their_own_inputs_only() -> None:
    model = ModularKAN(["a", "b", "c"], {"one": ["c", "a"], "two": ["b"]}, out_features=2)
    x = torch.randn(10, 3)
    parts = model.contributions(x)
    assert list(parts) == ["one", "two"]
    torch.testing.assert_close(model(x), parts["one"] + parts["two"])
    torch.testing.assert_close(parts["one"], model.parts["one"](x[:, [2, 0]]))
    changed = x.clone()
    changed[:, 1] += 1
    assert torch.equal(model.contributions(changed)["one"], parts["one"])
    assert not torch.equal(model.contributions(changed)["two"], parts["two"])


def test_inputs_may_be_given_by_name() -> None:
    model = ModularKAN(NAMES, MODULES)
    x = torch.randn(4, 10, 3)
    named = {"c": x[..., 2], "a": x[..., 0], "b": x[..., 1]}
    torch.testing.assert_close(model(named), model(x))
    with pytest.raises(ValueError, match=r"inputs are \['a', 'b', 'c'\], not \['a'\]"):
        model({"a": x[..., 0]})


# CheckpointedKAN


@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_checkpointed_equals_plain(every: int) -> None:
    plain = KAN([3, 5, 5, 4, 1]).double()
    model = CheckpointedKAN([3, 5, 5, 4, 1], every=every).double()
    model.load_state_dict(plain.state_dict())
    results = []
    for network in (plain, model):
        x = torch.linspace(-2, 2, 60, dtype=torch.float64).reshape(20, 3).requires_grad_()
        y = network(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in network.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)


def test_checkpointing_computes_layers_again_in_the_backward_pass() -> None:
    model = CheckpointedKAN([3, 5, 5, 5, 1], every=2)
    calls: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].detach()))
    x = torch.randn(20, 3)
    y = model(x)
    assert len(calls) == 4
    y.sum().backward()
    assert len(calls) == 8
    with torch.no_grad():
        model(x)
    assert len(calls) == 12


def test_a_checkpointed_one_updates_its_grids() -> None:
    model = CheckpointedKAN([2, 4, 1])
    before = model.layers[0].grid.clone()
    model(5 * torch.randn(100, 2), update_grid=True)
    assert not torch.equal(model.layers[0].grid, before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: kan_layer(1, 1, base_activation="sine"), "silu, gelu, .* or None"),
        (lambda: kan_layer(1, 1, grid_size=0), "grid_size must be at least 1"),
        (lambda: kan_layer(1, 1, grid_range=(1, -1)), "low < high"),
        (lambda: ResidualKAN([3]), "at least two widths"),
        (lambda: ResidualKAN([3, 1], gate=float("nan")), "gate must be a finite number"),
        (lambda: ResidualKAN([3, 0, 1]), "whole numbers of at least 1"),
        (lambda: DeepKAN([3, 2.5, 1]), "whole numbers"),
        (lambda: DeepKAN([3, 5, 1], dropout=1.0), r"dropout must be in \[0, 1\), not 1.0"),
        (lambda: DeepKAN([3, 2, 1]), "at least 3 for their LayerNorm"),
        (lambda: SparseKAN([3, 1], threshold=-0.1), "threshold must be in"),
        (lambda: SparseKAN([3, 1]).sparsity(torch.zeros(1, 3)), "at least two samples"),
        (lambda: SparseKAN([3, 1])(torch.zeros(2, 4)), "last dimension is 4, not 3"),
        (lambda: ModularKAN(["a"], {}), "at least one module"),
        (lambda: ModularKAN(["a", "a"], {"m": ["a"]}), "must differ"),
        (lambda: ModularKAN(["a"], {"m": ["b"]}), "'m' asks for 'b', which is no input"),
        (lambda: ModularKAN(["a", "b"], {"m": ["a"]}), "no module uses: b"),
        (lambda: ModularKAN(["a"], {"m": []}), "needs names of inputs"),
        (lambda: ModularKAN(["a", "b"], {"m": "ab"}), "needs names of inputs, each once, not 'ab'"),
        (lambda: ModularKAN(["a"], {"x.y": ["a"]}), "cannot be named 'x.y'"),
        (lambda: ModularKAN(["a"], {"items": ["a"]}), "cannot be named 'items'"),
        (lambda: ModularKAN(["a"], {"m": ["a"]}, hidden=(0,)), "whole numbers"),
        (lambda: ModularKAN(["a"], {"m": ["a"]})(torch.zeros(2, 3)), "last dimension is 3, not 1"),
        (lambda: CheckpointedKAN([3, 1], every=0), "every must be"),
        (lambda: CheckpointedKAN([3, 1], base_activation="sine"), "base_activation must be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_with_the_reason(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_layers_of_all_variants_are_kan_layers() -> None:
    for make in MAKERS.values():
        assert sum(isinstance(module, KANLinear) for module in make().modules()) >= 2
