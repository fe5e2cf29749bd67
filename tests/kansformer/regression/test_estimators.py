"""The estimators follow scikit-learn's rules, and all copies of them compute the same."""

import copy
import json
import pickle
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.datasets import load_iris, make_friedman1
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from kansformer.errors import UserError
from kansformer.regression import KANClassifier, KANRegressor, load_estimator, save_estimator

QUICK = {"hidden": (4,), "max_epochs": 25, "lr": 0.05}


@parametrize_with_checks([KANRegressor(**QUICK), KANClassifier(**QUICK)])
def test_scikit_learns_checks(estimator: object, check: object) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def regressor() -> KANRegressor:
    return KANRegressor(**QUICK, random_state=0).fit(*friedman())


@pytest.fixture(scope="module")
def classifier() -> KANClassifier:
    x, y = load_iris(return_X_y=True)
    return KANClassifier(**QUICK, random_state=0).fit(x, np.array(["a", "bb", "ccc"])[y])


def friedman(count: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return make_friedman1(count, n_features=6, random_state=seed)


def test_they_learn(regressor: KANRegressor, classifier: KANClassifier) -> None:
    assert regressor.score(*friedman(seed=1)) > 0.7
    x, y = load_iris(return_X_y=True)
    assert classifier.score(x, np.array(["a", "bb", "ccc"])[y]) > 0.93
    np.testing.assert_allclose(classifier.predict_proba(x).sum(axis=1), 1)


@pytest.mark.parametrize("kind", ["regressor", "classifier"])
def test_copies_compute_the_same(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    estimator = request.getfixturevalue(kind)
    save_estimator(tmp_path / "model.safetensors", estimator)
    x = load_iris().data if kind == "classifier" else friedman()[0]
    method = "predict_proba" if kind == "classifier" else "predict"
    expected = getattr(estimator, method)(x)
    loaded = load_estimator(tmp_path / "model.safetensors")
    for other in (loaded, pickle.loads(pickle.dumps(estimator)), copy.deepcopy(estimator)):
        assert type(other) is type(estimator)
        np.testing.assert_allclose(getattr(other, method)(x), expected, rtol=0, atol=1e-10)
        assert (other.predict(x) == estimator.predict(x)).all()
        assert other.history_ == estimator.history_
        assert other.best_epoch_ == estimator.best_epoch_
    assert loaded.get_params() == {**estimator.get_params(), "hidden": [4]}
    assert clone(loaded).fit(x, estimator.predict(x)).n_features_in_ == x.shape[1]


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool", "object", "<U3"])
def test_labels_keep_their_type(dtype: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    labels = (x[:, 0] > 0).astype(int)
    y = np.array(["no", "yes"])[labels] if dtype in ("object", "<U3") else labels
    y = y.astype(dtype)
    estimator = KANClassifier(**{**QUICK, "max_epochs": 2}).fit(x, y)
    save_estimator(tmp_path / "model.safetensors", estimator)
    answer = load_estimator(tmp_path / "model.safetensors").predict(x)
    assert answer.dtype == estimator.predict(x).dtype == y.dtype
    assert (answer == estimator.predict(x)).all()


def test_several_outputs(tmp_path: Path) -> None:
    x, y = friedman()
    both = np.stack([y, -1000 * y + 7], axis=1)
    estimator = KANRegressor(**QUICK, random_state=0).fit(x, both)
    answer = estimator.predict(x)
    assert answer.shape == (120, 2)
    assert estimator.score(x, both) > 0.7
    save_estimator(tmp_path / "model.safetensors", estimator)
    loaded = load_estimator(tmp_path / "model.safetensors")
    np.testing.assert_allclose(loaded.predict(x), answer, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scaling", ["standard", "min-max"])
def test_predictions_follow_the_units_of_the_data(scaling: str) -> None:
    x, y = friedman()
    first, second = (
        KANRegressor(**{**QUICK, "max_epochs": 5}, scaling=scaling, random_state=0)
        for _ in range(2)
    )
    answer = first.fit(x, y).predict(x)
    scaled = second.fit(1000 * x - 7, 60 * y + 5).predict(1000 * x - 7)
    np.testing.assert_allclose((scaled - 5) / 60, answer, atol=1e-6)


@pytest.mark.parametrize("count", [2, 19, 20])
@pytest.mark.parametrize("scaling", ["standard", "min-max"])
def test_few_samples_and_constant_inputs_give_numbers(count: int, scaling: str) -> None:
    x = np.random.default_rng(0).normal(size=(count, 3))
    x[:, 1] = 4.0
    options = {**QUICK, "max_epochs": 10, "scaling": scaling}
    for data in (x, np.full_like(x, 3.0)):
        estimator = KANRegressor(**options).fit(data, np.arange(count))
        assert np.isfinite(estimator.predict(1e3 * data)).all()
        assert ("val_loss" in estimator.history_[0]) == (count >= 20)
        constant = KANRegressor(**options).fit(data, np.full(count, 2.5))
        np.testing.assert_allclose(constant.predict(data), 2.5, atol=2)
        labels = np.arange(count) % 2
        probabilities = KANClassifier(**options).fit(data, labels).predict_proba(data)
        assert np.isfinite(probabilities).all()


def test_the_split_is_stratified_by_class() -> None:
    y = np.repeat([0, 1], [80, 20])
    fitted, held_out = KANClassifier()._split(y, 100, 0)
    assert sorted([*fitted, *held_out]) == list(range(100))
    assert np.bincount(y[held_out]).tolist() == [12, 3]


def test_the_seed_decides_and_the_global_generator_is_not_used() -> None:
    x, y = friedman()
    state = torch.get_rng_state()
    options = {**QUICK, "max_epochs": 3}
    first, second, other = (
        KANRegressor(**options, random_state=seed).fit(x, y).predict(x) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (first == second).all()
    assert (first != other).any()


def test_fits_in_threads_equal_sequential_fits() -> None:
    x, y = friedman(60)

    def states() -> list[object]:
        numbers = np.random.get_state()[1].tolist()
        return [torch.get_rng_state().tolist(), numbers, random.getstate()]

    def weights(seed: int) -> list[torch.Tensor]:
        options = {**QUICK, "dropout": 0.2, "batch_size": 16, "random_state": seed}
        return list(KANRegressor(**options).fit(x, y).model_.state_dict().values())

    before = states()
    alone = [weights(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(weights, [0, 1, 2, 0]))
    assert states() == before
    for one, other in zip([*alone, alone[0]], together, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("number", [np.int64, np.int16, np.uint8])
def test_parameters_may_be_numpys_numbers(number: type, tmp_path: Path) -> None:
    x, y = friedman()
    sizes = {"grid_size": 4, "spline_order": 2, "batch_size": 16, "max_epochs": 3, "patience": 2}
    expected = KANRegressor(hidden=(4,), lr=0.5, dropout=0.5, random_state=7, **sizes).fit(x, y)
    estimator = KANRegressor(
        hidden=np.array([4], number), lr=np.float32(0.5), dropout=np.float32(0.5),
        random_state=np.int64(7), **{name: number(size) for name, size in sizes.items()},
    ).fit(x, y)  # fmt: skip
    save_estimator(tmp_path / "model.safetensors", estimator)
    for other in (estimator, load_estimator(tmp_path / "model.safetensors")):
        np.testing.assert_allclose(other.predict(x), expected.predict(x), rtol=0, atol=1e-10)
        assert other.history_ == expected.history_


def test_no_hidden_layer_fits_a_sum_of_functions() -> None:
    x = np.random.default_rng(0).normal(size=(100, 2))
    estimator = KANRegressor(hidden=(), max_epochs=5).fit(x, x[:, 0])
    a, b = x[:1], x[1:2]
    mixed = np.array([[a[0, 0], b[0, 1]], [b[0, 0], a[0, 1]]])
    total = estimator.predict(np.concatenate([a, b])).sum()
    assert estimator.predict(mixed).sum() == pytest.approx(total)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden": (2,)}, "at least 3 for their LayerNorm"),
        ({"hidden": 16}, r"hidden must be a sequence such as \(16,\), not 16"),
        ({"scaling": "robust"}, "method must be one of"),
        ({"base_activation": "sine"}, "base_activation must be"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\)"),
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"dropout": 2.0}, "dropout must be in"),
    ],
)
def test_bad_parameters_are_rejected_with_the_reason(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KANRegressor(**options).fit(*friedman())


def test_a_single_class_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        KANClassifier().fit(np.eye(3), [1, 1, 1])


def with_metadata(path: Path, change: object) -> None:
    """Rewrites a file with changed metadata."""
    header = path.read_bytes()
    size = struct.unpack("<Q", header[:8])[0]
    metadata = json.loads(json.loads(header[8 : 8 + size])["__metadata__"]["kansformer-regression"])
    change(metadata)
    save_file(load_file(path), path, {"kansformer-regression": json.dumps(metadata)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format_version=9), "format version 9, not 1"),
        (lambda m: m.update(task="cooking"), "cooking"),
        (lambda m: m.update(inputs=10**9), "do not match its tensors"),
        (lambda m: m["parameters"].update(hidden=[5]), "do not match its tensors"),
        (lambda m: m["parameters"].update(hidden=[4] * 10**6), "do not match its tensors"),
        (lambda m: m["parameters"].update(grid_size=10**9), "size mismatch"),
        (lambda m: m["parameters"].update(color="red"), "color"),
        (lambda m: m["classes"].update(dtype="V8"), "classes do not match"),
        (lambda m: m["classes"].update(values=["a"]), "classes do not match"),
        (lambda m: m.pop("classes"), "classes"),
    ],
)
def test_damaged_metadata_are_an_error_in_one_line(
    classifier: KANClassifier, change: object, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_estimator(path, classifier)
    load_estimator(path)
    with_metadata(path, change)
    with pytest.raises(UserError, match=words) as caught:
        load_estimator(path)
    assert "\n" not in str(caught.value)
    assert "give a model.safetensors" in str(caught.value)


def test_files_without_a_model_are_an_error(regressor: KANRegressor, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load_estimator(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable small KAN"):
        load_estimator(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no metadata"):
        load_estimator(path)
    save_estimator(path, regressor)
    tensors = load_file(path)
    tensors["network.layers.0.base_weight"][0] = torch.nan
    save_file(tensors, path, {"kansformer-regression": "{}"})
    with pytest.raises(UserError, match="must be finite"):
        load_estimator(path)


def test_only_fitted_estimators_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        save_estimator(tmp_path / "model.safetensors", KANRegressor())


def test_names_of_inputs_are_kept(tmp_path: Path) -> None:
    estimator = KANRegressor(**{**QUICK, "max_epochs": 2})
    estimator.fit(np.random.default_rng(0).normal(size=(30, 2)), np.arange(30))
    estimator.feature_names_in_ = np.array(["age", "size"], dtype=object)
    save_estimator(tmp_path / "model.safetensors", estimator)
    loaded = load_estimator(tmp_path / "model.safetensors")
    assert loaded.feature_names_in_.tolist() == ["age", "size"]
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        loaded.predict(np.zeros((2, 2)))
