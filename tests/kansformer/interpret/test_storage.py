"""Laws of copies and files: they compute the same, and nothing is unpickled."""

import copy
import pickle
from pathlib import Path

import pytest

from kansformer.errors import UserError
from kansformer.interpret import (
    create_dataset,
    fit,
    load,
    prune,
    prune_input,
    refine,
    save,
)
from tests.kansformer.interpret.test_model import assert_same, box, network


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
