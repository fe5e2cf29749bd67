"""A search over shapes ends at the formula."""

import pytest

from kansformer.symbolic import create_dataset, ex_round, find_formula, symbolic_formula


def test_a_formula_is_found_among_shapes_without_help() -> None:
    dataset = create_dataset(lambda x: 30 * x[:, 0] * x[:, 1].cos(), 2, (-2, 2), 300, 100)
    model = find_formula(dataset, names=["u", "v"])
    assert str(ex_round(symbolic_formula(model)[0])) == "30*u*cos(v)"
    error = (model(dataset["test_input"]) - dataset["test_label"]).detach().abs().max()
    assert float(error) < 1e-10


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_constant_is_a_formula(value: float) -> None:
    dataset = create_dataset(lambda x: 0 * x[:, 0] + value, 2, train_num=100, test_num=50)
    model = find_formula(dataset)
    assert float(ex_round(symbolic_formula(model)[0])) == value
    assert model.edge_count() == 0
