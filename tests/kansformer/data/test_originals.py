"""Reading the original files of MNIST, Fashion-MNIST and CIFAR, written here in their formats."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kansformer.data import load_data
from kansformer.data.originals import FASHION, FASHION_TEST_LABELS, MNIST_FILES
from kansformer.errors import UserError

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(
    folder: Path, packed: bool, fashion: bool = False, training: int = 50
) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name in MNIST_FILES:
        count = training if "train" in name else 20
        if "images" in name:
            arrays[name] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        else:
            arrays[name] = np.arange(count, dtype=np.uint8) % 10
            if fashion and "t10k" in name:
                arrays[name][:10] = FASHION_TEST_LABELS
        data = idx(arrays[name])
        path = folder / (name + (".gz" if packed else ""))
        path.write_bytes(gzip.compress(data) if packed else data)
    return arrays


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
def test_mnist(tmp_path: Path, packed: bool, below: str) -> None:
    arrays = write_mnist(tmp_path / below, packed)
    data = load_data(str(tmp_path))
    assert data.name == "mnist"
    assert data.class_names == tuple("0123456789")
    assert np.array_equal(data.train.items, arrays[MNIST_FILES[0]])
    assert np.array_equal(data.train.labels, arrays[MNIST_FILES[1]])
    assert np.array_equal(data.test.items, arrays[MNIST_FILES[2]])
    assert data.in_chans == 1
    assert data.test.name(3) == "mnist/test[3]"


def test_fashion_mnist_is_recognized_by_its_test_labels(tmp_path: Path) -> None:
    write_mnist(tmp_path, True, fashion=True)
    data = load_data(str(tmp_path))
    assert (data.name, data.class_names) == ("fashion-mnist", FASHION)


CIFAR10 = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def write_cifar_python(folder: Path, hundred: bool) -> np.ndarray:
    """Returns the training pictures, (N, 32, 32, 3)."""
    folder.mkdir(parents=True)
    label_key, names_key = (b"fine_labels", b"fine_label_names") if hundred else (
        b"labels", b"label_names")  # fmt: skip
    names = [f"class {i}".encode() for i in range(100 if hundred else 10)]
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(
        pickle.dumps({names_key: names}, protocol=2)
    )
    pictures = []
    for name in ["train", "test"] if hundred else CIFAR10:
        batch = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        rows = batch.transpose(0, 3, 1, 2).reshape(20, 3072)
        content = {b"data": rows, label_key: [i % len(names) for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        if "test" not in name:
            pictures.append(batch)
    return np.concatenate(pictures)


def write_cifar_binary(folder: Path, hundred: bool) -> np.ndarray:
    folder.mkdir(parents=True)
    names = [f"class_{i}" for i in range(100 if hundred else 10)]
    (folder / ("fine_label_names.txt" if hundred else "batches.meta.txt")).write_text(
        "\n".join(names) + "\n"
    )
    pictures = []
    files = ["train", "test"] if hundred else CIFAR10
    for name in files:
        batch = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        rows = batch.transpose(0, 3, 1, 2).reshape(20, 3072)
        label = np.arange(20, dtype=np.uint8)[:, None] % len(names)
        coarse = [np.zeros((20, 1), np.uint8)] if hundred else []
        (folder / f"{name}.bin").write_bytes(np.hstack([*coarse, label, rows]).tobytes())
        if "test" not in name:
            pictures.append(batch)
    return np.concatenate(pictures)


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("write", [write_cifar_python, write_cifar_binary])
@pytest.mark.parametrize("nested", [True, False])
def test_cifar(
    tmp_path: Path, hundred: bool, write: Callable[[Path, bool], np.ndarray], nested: bool
) -> None:
    kind = "python" if write is write_cifar_python else "binary"
    below = f"cifar-100-{kind}" if hundred else f"cifar-10-batches-{kind[:3].replace('pyt', 'py')}"
    folder = tmp_path / "data"
    expected = write(folder / below if nested else folder, hundred)
    data = load_data(str(folder))
    assert data.name == ("cifar100" if hundred else "cifar10")
    assert len(data.class_names) == (100 if hundred else 10)
    assert np.array_equal(data.train.items, expected)
    assert data.train.labels[:20].tolist() == [i % len(data.class_names) for i in range(20)]
    assert len(data.test) == 20
    assert data.in_chans == 3
    assert np.array_equal(data.train.open(0), expected[0])


def test_errors_name_missing_and_damaged_files(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a", True)
    (tmp_path / "a" / (MNIST_FILES[2] + ".gz")).unlink()
    with pytest.raises(UserError, match=r"t10k-images.*missing"):
        load_data(str(tmp_path / "a"))

    write_mnist(tmp_path / "b", True)
    path = tmp_path / "b" / (MNIST_FILES[0] + ".gz")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train-images.*damaged"):
        load_data(str(tmp_path / "b"))

    data = bytearray(path.read_bytes())
    data[200:230] = bytes(30)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train-images.*damaged"):
        load_data(str(tmp_path / "b"))

    write_mnist(tmp_path / "c", False)
    path = tmp_path / "c" / MNIST_FILES[1]
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match=r"train-labels.*not a valid file"):
        load_data(str(tmp_path / "c"))

    write_cifar_binary(tmp_path / "d", False)
    (tmp_path / "d" / "data_batch_3.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"data_batch_3.*not a valid file"):
        load_data(str(tmp_path / "d"))


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path(self.mark).touch, ())


def test_a_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    write_cifar_python(tmp_path / "data", False)
    content = pickle.dumps({b"data": Evil(mark), b"labels": [0]})
    (tmp_path / "data" / "data_batch_2").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_2"):
        load_data(str(tmp_path / "data"))
    assert not mark.exists()
