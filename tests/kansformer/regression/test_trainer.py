"""Training: any optimizer and schedule, penalties, clipping, and restored best weights."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from kansformer.errors import JobFailed
from kansformer.regression import KANTrainer, create_synthetic_dataset, predict
from kansformer.regression.trainer import effective_weights
from models.kan import KAN
from models.kan_variants import DeepKAN, SparseKAN


def data(count: int = 100, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = create_synthetic_dataset("hello", count, seed=seed)
    return x.float(), y.float()


def line() -> nn.Linear:
    """One weight, no bias."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    return model


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (None, {"lr": 0.05}),
        (partial(SGD, lr=0.1, momentum=0.9), {}),
        (partial(LBFGS, lr=0.5, max_iter=5), {"batch_size": None, "clip_norm": None}),
    ],
    ids=["AdamW", "SGD", "LBFGS"],
)
def test_it_trains_with_any_optimizer(optimizer: object, options: dict) -> None:
    x, y = data()
    trainer = KANTrainer(KAN([2, 5, 1]), optimizer=optimizer, **options)
    history = trainer.fit(x, y, epochs=20)
    assert [row["epoch"] for row in history] == list(range(1, 21))
    assert history[-1]["train_loss"] < 0.1 * float(y.var())
    trained = float((trainer.predict(x) - y).square().mean())
    assert trained < 0.1 * float(y.var())


def test_adamw_is_the_default_and_spares_vectors() -> None:
    trainer = KANTrainer(DeepKAN([2, 4, 1]), weight_decay=0.3)
    assert type(trainer.optimizer) is AdamW
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0)
    listed = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert listed == len(list(trainer.model.parameters()))


def test_classes_are_learned_with_cross_entropy() -> None:
    x, _ = data(200)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    trainer = KANTrainer(KAN([2, 4, 2]), loss="cross_entropy", lr=0.05)
    trainer.fit(x, labels, epochs=20)
    assert (trainer.predict(x).argmax(dim=1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.bool, torch.uint16])
def test_labels_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    x, _ = data(40)
    labels = (x[:, 0] > 0).long()

    def history(y: torch.Tensor, count: type) -> list[dict[str, float]]:
        torch.manual_seed(0)
        trainer = KANTrainer(
            DeepKAN([2, 2]), loss="cross_entropy", batch_size=count(8), seed=count(3)
        )
        return trainer.fit(x, y, validation=(x, y), epochs=count(2))

    assert history(labels.to(dtype), np.int16) == history(labels, int)


def test_schedules_step_after_every_epoch() -> None:
    x, y = data()
    cosine = partial(CosineAnnealingLR, T_max=4)
    history = KANTrainer(KAN([2, 1]), scheduler=cosine, lr=0.1).fit(x, y, epochs=4)
    assert [round(row["lr"], 4) for row in history] == [0.1, 0.0854, 0.05, 0.0146]
    plateau = partial(ReduceLROnPlateau, patience=0, factor=0.5)
    trainer = KANTrainer(line(), scheduler=plateau, optimizer=partial(SGD, lr=0.0))
    trainer.optimizer.param_groups[0]["lr"] = 1e-12
    trainer.scheduler.eps = 0
    rates = [row["lr"] for row in trainer.fit(torch.ones(4, 1), torch.zeros(4, 1), epochs=3)]
    assert rates[-1] < rates[0]


def test_the_best_weights_are_restored_after_early_stopping() -> None:
    x, y = data(30)
    model = KAN([2, 8, 1], grid_size=20)
    states = []

    class Recorder(KANTrainer):
        def _epoch(self, *arguments: object) -> dict[str, float]:
            row = super()._epoch(*arguments)
            states.append(copy.deepcopy(self.model.state_dict()))
            return row

    trainer = Recorder(model, lr=0.1, patience=5)
    noise = data(30, seed=1)
    history = trainer.fit(x, y, validation=noise, epochs=200)
    losses = [row["val_loss"] for row in history]
    best = losses.index(min(losses))
    assert len(history) == best + 1 + 5 < 200
    assert trainer.best_epoch == best + 1
    assert all(torch.equal(states[best][k], v) for k, v in model.state_dict().items())
    assert any(not torch.equal(states[-1][k], v) for k, v in model.state_dict().items())
    loss = float((predict(model, noise[0]) - noise[1]).square().mean())
    assert loss == pytest.approx(min(losses), rel=1e-5)


def test_penalties_follow_the_formula() -> None:
    x, y = torch.ones(4, 1), torch.zeros(4, 1)
    options = {"optimizer": partial(SGD, lr=0.0)}
    for l1, l2, expected in ((0.0, 0.0, 4.0), (0.1, 0.0, 4.2), (0.0, 0.1, 4.4)):
        history = KANTrainer(line(), l1=l1, l2=l2, **options).fit(x, y, epochs=1)
        assert history[0]["train_loss"] == pytest.approx(expected)
    penalty = KANTrainer(line(), penalty=lambda model: 5 * model.weight.sum(), **options)
    assert penalty.fit(x, y, epochs=1)[0]["train_loss"] == pytest.approx(14)


def test_penalties_apply_to_coefficients_times_scaler() -> None:
    model = KAN([2, 3, 1])
    before = [weight.abs().sum() for weight in effective_weights(model)]
    assert len(before) == 4
    with torch.no_grad():
        for layer in model.layers:
            layer.spline_weight /= 10
            layer.spline_scaler *= 10
    torch.testing.assert_close([w.abs().sum() for w in effective_weights(model)], before)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_penalties_shrink_the_weights(name: str) -> None:
    x, y = data()
    sizes = []
    for strength in (0.0, 1e-2):
        torch.manual_seed(0)
        model = KAN([2, 4, 1])
        KANTrainer(model, weight_decay=0, lr=0.02, **{name: strength}).fit(x, y, epochs=20)
        sizes.append(sum(float(w.detach().abs().sum()) for w in effective_weights(model)))
    assert sizes[1] < 0.8 * sizes[0]


def test_the_models_group_penalty_makes_it_sparse() -> None:
    x, y = create_synthetic_dataset("additive", 200)
    x, y = x.float(), y.float()
    model = SparseKAN([5, 1], threshold=0.05)
    penalty = partial(lambda model: 0.05 * model.group_penalty())
    KANTrainer(model, penalty=penalty, weight_decay=0, lr=0.05).fit(x, y, epochs=40)
    assert model.idle_edges(x)[0].tolist() == [[False, False, False, True, True]]


def test_clipping_bounds_the_step() -> None:
    x, y = torch.full((4, 1), 100.0), torch.zeros(4, 1)
    for clip, moved in ((0.5, 0.5), (None, 40_000.0)):
        model = line()
        KANTrainer(model, optimizer=partial(SGD, lr=1.0), clip_norm=clip).fit(x, y, epochs=1)
        assert 2 - model.weight.item() == pytest.approx(moved, rel=1e-5)


def test_runs_repeat_without_the_global_generator() -> None:
    x, y = data()
    weights = []
    start = KAN([2, 3, 1])
    state = torch.get_rng_state()
    for seed in (1, 1, 2):
        model = copy.deepcopy(start)
        KANTrainer(model, seed=seed).fit(x, y, epochs=2)
        weights.append(model.layers[0].spline_weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_prediction_does_not_depend_on_batches_and_changes_nothing() -> None:
    model = DeepKAN([2, 64, 1], dropout=0.5).double()
    x = data(50)[0].double()
    whole = predict(model, x)
    torch.testing.assert_close(predict(model, x, 7), whole, rtol=0, atol=1e-13)
    assert all(module.training for module in model.modules())
    assert not whole.requires_grad
    torch.testing.assert_close(model.eval()(x), whole)
    assert predict(model, x[:0]).shape == (0, 1)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        predict(model, x, 0)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_best_weights() -> None:
    x, y = data()
    model = KAN([2, 1])
    bad = {"calls": 0}

    def loss(output: Tensor, target: Tensor) -> Tensor:
        bad["calls"] += 1
        factor = torch.nan if bad["calls"] > 3 else 1.0
        return factor * (output - target).square().mean()

    trainer = KANTrainer(model, loss=loss, batch_size=None)
    with pytest.raises(JobFailed, match="the loss is nan; try a lower learning rate"):
        trainer.fit(x, y, validation=data(seed=1), epochs=5)
    assert trainer.best_epoch == 1
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_second_fit_continues() -> None:
    x, y = data()
    trainer = KANTrainer(KAN([2, 1]))
    trainer.fit(x, y, epochs=2)
    assert [row["epoch"] for row in trainer.fit(x, y, epochs=2)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "huber"}, "mse, cross_entropy, or a function"),
        ({"lr": -1}, "lr must be a number of at least 0"),
        ({"l1": float("nan")}, "l1 must be"),
        ({"clip_norm": 0}, "clip_norm must be above 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
    ],
)
def test_bad_options_are_rejected_with_the_reason(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KANTrainer(KAN([2, 1]), **options)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(4, 1), "3 inputs and 4 targets"),
        (torch.zeros(0, 2), torch.zeros(0, 1), "0 inputs"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, 1), "must be finite"),
        (torch.zeros(3, 2), torch.zeros(3), r"targets are \(3,\), but outputs \(3, 1\)"),
        (torch.zeros(3, 2), torch.zeros(3).long(), r"targets are \(3,\), but outputs"),
    ],
)
def test_bad_samples_are_rejected_with_the_reason(x: Tensor, y: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KANTrainer(KAN([2, 1])).fit(x, y, epochs=1)


def test_validation_data_are_checked() -> None:
    x, y = data()
    with pytest.raises(ValueError, match="but outputs"):
        KANTrainer(KAN([2, 1])).fit(x, y, validation=(x, y[:, 0]), epochs=1)


@pytest.mark.parametrize("label", [-1, 3])
def test_classes_without_an_output_are_rejected(label: int) -> None:
    y = torch.tensor([0, 1, label])
    with pytest.raises(ValueError, match="class indices must be 0 to 2"):
        KANTrainer(KAN([2, 3]), loss="cross_entropy").fit(torch.zeros(3, 2), y, epochs=1)


def test_patience_needs_validation() -> None:
    with pytest.raises(ValueError, match="patience needs validation data"):
        KANTrainer(KAN([2, 1]), patience=3).fit(*data())
