"""Laws of fitting: a lower error, a complete record, training data only."""

import pytest
import torch

from kansformer.symbolic import (
    Dataset,
    SymbolicKAN,
    auto_symbolic,
    create_dataset,
    fit,
    prune,
    prune_edge,
)
from models.kan import KAN
from tests.kansformer.symbolic.networks import hello


@pytest.mark.parametrize("opt", ["LM", "LBFGS", "Adam"])
def test_every_optimizer_lowers_the_error_and_keeps_a_record(opt: str) -> None:
    dataset = create_dataset(hello, 2, train_num=200, test_num=50)
    model = SymbolicKAN([2, 2, 1], seed=0, grid_size=3)
    steps = {"LM": 12, "LBFGS": 5, "Adam": 60}[opt]
    batch = {"batch": 50, "lr": 0.05} if opt == "Adam" else {}
    history = fit(
        model,
        dataset,
        opt,
        steps,
        lamb=1e-3,
        progress=False,
        **batch,
        metrics={"edges": lambda m: m.edge_count()},
    )
    assert history["train_rmse"][-1] < 0.5 * float(dataset["train_label"].std())
    assert history.keys() == {"train_rmse", "test_rmse", "reg", "edges"}
    assert len(history["reg"]) == steps
    assert history["edges"] == [6.0] * steps
    with torch.no_grad():
        error = (model(dataset["test_input"]) - dataset["test_label"]).square().mean().sqrt()
    assert history["test_rmse"][-1] == pytest.approx(float(error))


def test_there_is_a_record_even_if_there_is_nothing_to_fit() -> None:
    dataset = create_dataset(hello, 2, train_num=20, test_num=20)
    model = prune_edge(SymbolicKAN([2, 1], seed=0), cut=[(0, 0, 0), (0, 1, 0)])
    assert len(fit(model, dataset, progress=False)["test_rmse"]) == 1


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
