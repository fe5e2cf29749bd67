"""Readers for the original files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, as published.

torchvision's readers are not used, because they require its folder layout, read neither IDX files
that are still gzipped nor CIFAR's binary version, and load CIFAR with an unrestricted unpickler.
"""

import codecs
import gzip
import io
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kansformer.errors import UserError

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# MNIST and Fashion-MNIST have the same file names; the first test labels tell them apart
FASHION_TEST_LABELS = [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
MNIST_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


@dataclass(frozen=True)
class Originals:
    """Pictures in memory: (N, H, W) or (N, H, W, 3) uint8 and (N,) labels, with class names."""

    name: str
    class_names: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def find_originals(folder: Path) -> Originals | None:
    """Reads the data set whose original files lie in a folder or in its usual subfolders.

    Returns:
        The data set, or None if there are no such files.

    Raises:
        UserError: some of the files are missing or damaged.
    """
    below = ("", "raw", "MNIST/raw", "FashionMNIST/raw",
             "cifar-10-batches-py", "cifar-10-batches-bin",
             "cifar-100-python", "cifar-100-binary")  # fmt: skip
    for candidate in (folder / sub for sub in below):
        for marker, reader in (
            ("train-images-idx3-ubyte", _read_mnist),
            ("train-images-idx3-ubyte.gz", _read_mnist),
            ("data_batch_1", _read_cifar10_python),
            ("data_batch_1.bin", _read_cifar10_binary),
            ("train.bin", _read_cifar100_binary),
        ):
            if (candidate / marker).is_file():
                return reader(candidate)
        if (candidate / "train").is_file() and (candidate / "meta").is_file():
            return _read_cifar100_python(candidate)
    return None


def _read(path: Path) -> bytes:
    """The content of a file, or of its `.gz` version if that is the only one."""
    packed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            return path.read_bytes()
        with gzip.open(packed) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; put the data set's original file there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); download the file again") from None


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: not a valid file of the data set; download the file again")


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """One file of the IDX format: magic number, sizes, then bytes."""
    data = _read(path)
    start = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < start:
        raise _damaged(path)
    shape = np.frombuffer(data, ">i4", dimensions, offset=4).tolist()
    if min(shape) < 1 or len(data) - start != int(np.prod(shape)):
        raise _damaged(path)
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_mnist(folder: Path) -> Originals:
    arrays = []
    for name in MNIST_FILES:
        arrays.append(_read_idx(folder / name, 3 if "images" in name else 1))
    train_x, train_y, test_x, test_y = arrays
    for x, y, name in ((train_x, train_y, MNIST_FILES[1]), (test_x, test_y, MNIST_FILES[3])):
        if len(x) != len(y) or y.max() > 9:
            raise _damaged(folder / name)
    fashion = test_y[:10].tolist() == FASHION_TEST_LABELS
    return Originals(
        "fashion-mnist" if fashion else "mnist",
        FASHION if fashion else DIGITS,
        (train_x, train_y.astype(np.int64)),
        (test_x, test_y.astype(np.int64)),
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the arrays of a CIFAR pickle and refuses to construct any other object."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them
            return codecs.encode
        if name == "_reconstruct" and module.endswith("multiarray"):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR file")


def _read_pickle(path: Path) -> dict[str, Any]:
    data = _read(path)
    try:
        values = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: values[key] for key in values}
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(
            f"{path}: damaged or not a CIFAR file ({error}); download the file again"
        ) from None


def _cifar_pictures(rows: np.ndarray, path: Path) -> np.ndarray:
    """Converts rows (N, 3072) of color planes to pictures (N, 32, 32, 3)."""
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        raise _damaged(path)
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _cifar_python_split(
    folder: Path, names: list[str], key: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = [], []
    for name in names:
        values = _read_pickle(folder / name)
        try:
            x = _cifar_pictures(values["data"], folder / name)
            y = np.asarray(values[key], dtype=np.int64)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _damaged(folder / name) from None
        if len(x) != len(y) or y.min() < 0 or y.max() >= num_classes:
            raise _damaged(folder / name)
        xs.append(x)
        ys.append(y)
    return np.concatenate(xs), np.concatenate(ys)


def _cifar_binary_split(
    folder: Path, names: list[str], label_bytes: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = [], []
    for name in names:
        data = np.frombuffer(_read(folder / name), np.uint8)
        if not len(data) or len(data) % (label_bytes + 3072):
            raise _damaged(folder / name)
        rows = data.reshape(-1, label_bytes + 3072)
        y = rows[:, label_bytes - 1].astype(np.int64)
        if y.max() >= num_classes:
            raise _damaged(folder / name)
        xs.append(_cifar_pictures(rows[:, label_bytes:], folder / name))
        ys.append(y)
    return np.concatenate(xs), np.concatenate(ys)


def _names(folder: Path, file: str, key: str | None) -> tuple[str, ...]:
    """Class names from a pickle's entry, or from the lines of a text file."""
    if key is None:
        return tuple(_read(folder / file).decode(errors="replace").split())
    try:
        return tuple(name.decode() for name in _read_pickle(folder / file)[key])
    except (KeyError, AttributeError, UnicodeDecodeError):
        raise _damaged(folder / file) from None


def _read_cifar10_python(folder: Path) -> Originals:
    names = _names(folder, "batches.meta", "label_names")
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    train = _cifar_python_split(folder, batches, "labels", len(names))
    test = _cifar_python_split(folder, ["test_batch"], "labels", len(names))
    return Originals("cifar10", names, train, test)


def _read_cifar10_binary(folder: Path) -> Originals:
    names = _names(folder, "batches.meta.txt", None)
    batches = [f"data_batch_{i}.bin" for i in range(1, 6)]
    train = _cifar_binary_split(folder, batches, 1, len(names))
    test = _cifar_binary_split(folder, ["test_batch.bin"], 1, len(names))
    return Originals("cifar10", names, train, test)


def _read_cifar100_python(folder: Path) -> Originals:
    names = _names(folder, "meta", "fine_label_names")
    train = _cifar_python_split(folder, ["train"], "fine_labels", len(names))
    test = _cifar_python_split(folder, ["test"], "fine_labels", len(names))
    return Originals("cifar100", names, train, test)


def _read_cifar100_binary(folder: Path) -> Originals:
    names = _names(folder, "fine_label_names.txt", None)
    train = _cifar_binary_split(folder, ["train.bin"], 2, len(names))
    test = _cifar_binary_split(folder, ["test.bin"], 2, len(names))
    return Originals("cifar100", names, train, test)
