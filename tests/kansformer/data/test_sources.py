"""A data path is resolved to labelled pictures, or refused with one line that names the problem."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kansformer.data import load_data
from kansformer.errors import UserError
from tests.conftest import COLORS, write_folder, write_picture
from tests.kansformer.data.test_originals import write_mnist


def fingerprint(folder: Path) -> str:
    """A hash of all names, contents and times below a folder."""
    entries = sorted(
        (str(p), p.lstat().st_mtime_ns, p.is_file() and hashlib.sha256(p.read_bytes()).digest())
        for p in folder.rglob("*")
    )
    return hashlib.sha256(repr(entries).encode()).hexdigest()


def names(folder: Path) -> set[str]:
    return {str(p) for p in folder.rglob("*.png")}


def test_flat_folder(colors: Path) -> None:
    before = fingerprint(colors)
    data = load_data(str(colors)).with_validation(0.2, 0)
    assert data.class_names == tuple(sorted(COLORS))
    assert data.name == "colors"
    assert np.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(data.val.labels).tolist() == [2, 2, 2]
    assert set(data.train.items) | set(data.val.items) == names(colors)
    assert not set(data.train.items) & set(data.val.items)
    for pictures in (data.train, data.val):
        for i, path in enumerate(pictures.items):
            assert Path(path).parent.name == data.class_names[pictures.labels[i]]
            assert pictures.name(i) == path
    assert fingerprint(colors) == before


def test_a_class_may_be_called_train_and_hidden_folders_are_skipped(tmp_path: Path) -> None:
    for name in ("bus", "train", ".git"):
        for i in range(3):
            write_picture(tmp_path / name / f"{i}.png", (i, i, i), i)
    write_picture(tmp_path / "bus" / ".ipynb_checkpoints" / "0-checkpoint.png", (0, 0, 0), 0)
    write_picture(tmp_path / "bus" / "london" / "red.png", (255, 0, 0), 0)
    data = load_data(str(tmp_path))
    assert data.class_names == ("bus", "train")
    assert np.bincount(data.train.labels).tolist() == [4, 3]


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_labels_of_split_folders_follow_class_names(tmp_path: Path, val: str) -> None:
    write_folder(tmp_path / "Train", 4)
    write_folder(tmp_path / "test", 2, first_seed=100)
    write_picture(tmp_path / val / "red" / "only.png", (200, 0, 0), 1)
    data = load_data(str(tmp_path)).with_validation(0.2, 0)
    assert len(data.train) == 12
    assert [data.class_names[label] for label in data.val.labels] == ["red"]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]


def test_without_val_a_share_of_train_becomes_validation(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 5)
    data = load_data(str(tmp_path)).with_validation(0.4, 0)
    assert (len(data.train), len(data.val), data.test) == (9, 6, None)


def test_digits() -> None:
    data = load_data("digits").with_validation(0.2, 0)
    parts = (data.train, data.val, data.test)
    assert sum(map(len, parts)) == 1797
    raw = load_digits()
    targets = {
        image.tobytes(): target for image, target in zip(raw.images, raw.target, strict=True)
    }
    for part in parts:
        for image, label in zip(part.items, part.labels, strict=True):
            assert targets[np.round(image.astype(float) * 16 / 255).tobytes()] == label
    other = load_data("digits").with_validation(0.2, 7)
    assert np.array_equal(other.test.items, data.test.items)
    assert not np.array_equal(other.val.items, data.val.items)
    assert data.in_chans == 1
    assert data.picture_size == 8


def make_nothing(folder: Path) -> Path:
    return folder / "nothing"


def make_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def make_loose_pictures(folder: Path) -> Path:
    write_picture(folder / "loose" / "a.png", (0, 0, 0), 0)
    return folder / "loose"


def make_empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def make_empty_class(folder: Path) -> Path:
    write_folder(folder / "holes")
    (folder / "holes" / "yellow").mkdir()
    (folder / "holes" / "yellow" / "notes.txt").touch()
    return folder / "holes"


def make_one_class(folder: Path) -> Path:
    write_picture(folder / "one" / "red" / "a.png", (0, 0, 0), 0)
    return folder / "one"


def make_unknown_val_class(folder: Path) -> Path:
    write_folder(folder / "odd" / "train", 2)
    write_picture(folder / "odd" / "val" / "yellow" / "a.png", (0, 0, 0), 0)
    return folder / "odd"


def make_val_only(folder: Path) -> Path:
    write_folder(folder / "half" / "val", 2)
    return folder / "half"


def make_strange_splits(folder: Path) -> Path:
    for part in ("one", "two"):
        write_folder(folder / "odd splits" / part, 2)
    return folder / "odd splits"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_strange_splits, "look like splits"),
        (make_nothing, "no such folder"),
        (make_file, "a file, not a folder"),
        (make_loose_pictures, "one folder per class"),
        (make_empty, "no class folders"),
        (make_empty_class, "yellow: no pictures"),
        (make_one_class, "only one class"),
        (make_unknown_val_class, "yellow: a class without training pictures"),
        (make_val_only, "no train/"),
    ],
)
def test_unusable_folders_are_refused_by_path(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        load_data(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_pictures_for_a_validation_split(tmp_path: Path) -> None:
    data = load_data(str(write_folder(tmp_path / "few", 1)))
    with pytest.raises(UserError, match="no class has two pictures"):
        data.with_validation(0.2, 0)
    pairs = load_data(str(write_folder(tmp_path / "pairs", 2)))
    with pytest.raises(UserError, match=r"have at most 2 pictures.*give --val-split 0.5"):
        pairs.with_validation(0.2, 0)
    halves = pairs.with_validation(0.5, 0)
    assert (len(halves.train), len(halves.val)) == (3, 3)
    with pytest.raises(UserError, match="between 0 and 1"):
        data.with_validation(1.0, 0)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "flowers102"])
def test_a_missing_data_set_is_refused_with_the_files_it_needs(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--download") as caught:
        load_data(name, download_dir=str(tmp_path))
    assert str(tmp_path / name) in str(caught.value)
    assert " there" in str(caught.value)


def test_files_of_another_data_set_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "fashion-mnist", packed=True)
    with pytest.raises(UserError, match="holds the files of mnist"):
        load_data("fashion-mnist", download_dir=str(tmp_path))
