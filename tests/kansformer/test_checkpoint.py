"""The weights file holds all that prediction needs; a bad file is refused with one line."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from kansformer.checkpoint import METADATA_KEY, load_model, save_model
from kansformer.data import Preprocessing
from kansformer.errors import JobFailed, UserError
from models.vit_model import VisionTransformer, create_model

NAMES = ("ant", "bee", "cat")


def small_model(**changes: object) -> VisionTransformer:
    return create_model(
        "kansformer_micro_patch4_8", **{"num_classes": 3, "depth": 2, "in_chans": 1, **changes}
    ).eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, VisionTransformer]:
    model = small_model(head="kan")
    path = tmp_path / "best.safetensors"
    save_model(path, model, Preprocessing(8, 1, 0.3, 0.4), NAMES, {"epoch": 7})
    return path, model


def test_round_trip(saved: tuple[Path, VisionTransformer]) -> None:
    path, model = saved
    loaded = load_model(path)
    assert loaded.config == model.config
    assert loaded.preprocessing == Preprocessing(8, 1, 0.3, 0.4)
    assert loaded.class_names == NAMES
    assert loaded.training_info == {"epoch": 7}
    assert not loaded.training
    assert all(p.device.type == "cpu" for p in loaded.parameters())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(x), model(x))
    loaded.train()(x).sum().backward()  # it can be trained further


def test_settings_may_be_numpy_values(tmp_path: Path) -> None:
    model = small_model(depth=np.int64(2), mlp_ratio=np.float32(2))
    preprocessing = Preprocessing(np.int32(8), np.uint8(1), np.float32(0.5), np.array([0.25]))
    training = {"epoch": np.int64(7), "losses": np.array([0.5, 0.25], np.float32)}
    path = tmp_path / "best.safetensors"
    save_model(path, model, preprocessing, NAMES, training, temperature=np.float32(2))
    loaded = load_model(path)
    assert loaded.config == model.config
    assert loaded.preprocessing == Preprocessing(8, 1, 0.5, (0.25,))
    assert loaded.training_info == {"epoch": 7, "losses": [0.5, 0.25]}
    assert loaded.temperature == 2


def test_metadata_is_plain_json(saved: tuple[Path, VisionTransformer]) -> None:
    with safetensors.safe_open(str(saved[0]), "pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
    assert metadata["format_version"] == 1
    assert metadata["class_names"] == list(NAMES)
    assert metadata["config"]["embed_dim"] == 96
    assert metadata["preprocessing"]["img_size"] == 8


def test_the_temperature_is_stored_and_defaults_to_1(
    saved: tuple[Path, VisionTransformer], tmp_path: Path
) -> None:
    assert load_model(saved[0]).temperature == 1
    path = tmp_path / "calibrated.safetensors"
    save_model(path, saved[1], Preprocessing(8, 1), NAMES, temperature=0.7)
    assert load_model(path).temperature == 0.7
    with safetensors.safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()[METADATA_KEY])
    del metadata["temperature"]
    save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})
    assert load_model(path).temperature == 1


def test_class_names_must_match_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        save_model(tmp_path / "x", small_model(), Preprocessing(8, 1), NAMES[:2])


def test_a_failed_write_keeps_the_old_file(
    saved: tuple[Path, VisionTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = saved
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(JobFailed, match="No space"):
        save_model(path, model, Preprocessing(8, 1), NAMES)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def rewrite(path: Path, **changes: object) -> None:
    """Changes metadata of a weights file; PART__FIELD=value changes a field of a part."""
    with safetensors.safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()[METADATA_KEY])
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            metadata[part][field] = value
        else:
            metadata[part] = value
    save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 99},
        {"config__depth": 10**9},
        {"config__embed_dim": 3 * 10**7},
        {"config__grid_size": 10**6},
        {"config__color": 1},
        {"config__depth": "many"},
        {"config": None},
        {"class_names": ["ant"]},
        {"temperature": 0},
        {"temperature": -1.5},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": None},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 10**400},
        {"preprocessing": {}},
        {"preprocessing__size": 3},
        {"preprocessing__img_size": 16},
        {"preprocessing__in_chans": 3},
        {"preprocessing__mean": "x"},
        {"preprocessing__std": 0},
        {"preprocessing__mean": [0.5, 0.5]},
        {"preprocessing__std": [0]},
        {"preprocessing__mean": [[0.5]]},
        {"config__reg_tokens": 10**9},
        {"config__class_token": "yes"},
        {"config__layer_scale": "x"},
        {"preprocessing__crop_pct": 1e-9},
        {"preprocessing__interpolation": "foo"},
        {"config__spline_order": -1},
        {"config__spline_order": "3"},
        {"config__grid_range": [3, -3]},
        {"config__grid_range": [3]},
        {"config__img_size": 10**12},
        {"config__mlp_ratio": 1e308},
        {"class_names": ["ant", "ant", "bee"]},
    ],
    ids=str,
)
def test_invalid_metadata_is_refused(
    saved: tuple[Path, VisionTransformer], changes: dict[str, object]
) -> None:
    rewrite(saved[0], **changes)
    with pytest.raises(UserError, match="not a readable KANsformer weights file") as caught:
        load_model(saved[0])
    assert str(saved[0]) in str(caught.value)
    assert "\n" not in str(caught.value)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return (self.mark.touch, ())


def test_other_files_are_refused(tmp_path: Path, saved: tuple[Path, VisionTransformer]) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil(mark)))
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "cut.safetensors").write_bytes(saved[0].read_bytes()[:-1000])
    save_file({"x": torch.zeros(1)}, tmp_path / "alien.safetensors")
    for name in ("pickle.pt", "text.safetensors", "empty.safetensors", "cut.safetensors",
                 "alien.safetensors"):  # fmt: skip
        with pytest.raises(UserError, match="not a readable KANsformer weights file") as caught:
            load_model(tmp_path / name)
        assert name in str(caught.value)
    assert not mark.exists()
    with pytest.raises(UserError, match="no such weights file"):
        load_model(tmp_path / "missing")
    with pytest.raises(UserError, match="a folder"):
        load_model(tmp_path)


@pytest.mark.parametrize("change", ["nan", "half", "nested"])
def test_invalid_contents_are_refused(saved: tuple[Path, VisionTransformer], change: str) -> None:
    path, model = saved
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    with safetensors.safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    if change == "nan":
        tensors["norm.bias"][3] = torch.nan
    elif change == "half":
        tensors = {name: value.half() for name, value in tensors.items()}
    else:
        metadata = {METADATA_KEY: "[" * 200_000}
    save_file(tensors, path, metadata)
    with pytest.raises(UserError, match="not a readable KANsformer weights file"):
        load_model(path)
