"""Laws of copies and files: they compute the same, and nothing is unpickled."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save as to_safetensors

from kansformer.errors import UserError
from kansformer.symbolic import (
    create_dataset,
    fit,
    load,
    prune,
    prune_input,
    refine,
    save,
)
from kansformer.symbolic.storage import METADATA_KEY
from tests.kansformer.symbolic.networks import assert_same, box, network


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


Tensors = dict[str, torch.Tensor]


def cast(name: str, dtype: torch.dtype) -> Callable[[Any, Tensors], None]:
    def change(metadata: Any, tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)

    return change


def reverse_knots(metadata: Any, tensors: Tensors) -> None:
    tensors["layers.0.kan.grid"] = tensors["layers.0.kan.grid"].flip(1).contiguous()


def more_edges_than_memory(metadata: Any, tensors: Tensors) -> None:
    metadata["layers"][0] |= {"in_features": 10**7, "out_features": 10**7}


def no_layers(metadata: Any, tensors: Tensors) -> None:
    metadata["layers"] = []
    for name in list(tensors):
        if name != "inputs":
            del tensors[name]


def one_input_twice(metadata: Any, tensors: Tensors) -> None:
    tensors["inputs"] = torch.zeros(2, dtype=torch.int64)


def one_name_twice(metadata: Any, tensors: Tensors) -> None:
    metadata["names"] = ["a", "a"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (cast("layers.0.mask", torch.float64), "mask is of torch.float64"),
        (cast("layers.1.fixed", torch.uint8), "fixed is of torch.uint8"),
        (cast("inputs", torch.float64), "inputs is of"),
        (cast("layers.0.affine", torch.float32), "all in float32 or all in float64"),
        (cast("layers.0.kan.spline_weight", torch.int8), "all in float32 or all in float64"),
        (reverse_knots, "do not rise"),
        (more_edges_than_memory, "other edges than its tensors"),
        (no_layers, "not a saved network"),
        (one_input_twice, "there twice"),
        (one_name_twice, "there twice"),
    ],
)
def test_files_that_contradict_themselves_are_refused_before_they_cost_memory(
    change: Callable[[Any, Tensors], None], cause: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save(path, network())
    with safetensors.safe_open(str(path), framework="pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    path.write_bytes(to_safetensors(tensors, {METADATA_KEY: json.dumps(metadata)}))
    with pytest.raises(UserError, match=cause):
        load(path)


def test_a_network_in_float32_comes_back_in_float32(tmp_path: Path) -> None:
    model, x = network().float(), box()
    save(tmp_path / "m", model)
    assert torch.equal(load(tmp_path / "m")(x), model(x))
