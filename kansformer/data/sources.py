"""Resolves `--data-path` to labelled pictures: folders, original files and built-in data sets.

Labels follow class names: all splits share one list of class names, given by the training split.
Nothing under the data path is written.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from kansformer.data.decoded import decode_files
from kansformer.data.findings import Finding, passed_over
from kansformer.data.images import Levels, open_image, read_size
from kansformer.data.listing import Listing, Split, list_folder, refuse
from kansformer.data.originals import DIGITS, Originals, find_originals
from kansformer.data.split import stratified_split
from kansformer.errors import UserError

# files that a user without network access has to provide
DOWNLOADS = {
    "mnist": "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz"
    " and t10k-labels-idx1-ubyte.gz",
    "fashion-mnist": "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,"
    " t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz",
    "cifar10": "the folder cifar-10-batches-py",
    "cifar100": "the folder cifar-100-python",
    "flowers102": "flowers-102/jpg, flowers-102/imagelabels.mat and flowers-102/setid.mat",
}
BUILT_IN = ("digits", *DOWNLOADS)
DIGITS_TEST_SEED = 0
SIZES_SAMPLED = 99  # pictures from which the typical size is estimated


@dataclass(frozen=True, eq=False)  # comparing arrays does not give a single truth value
class Pictures:
    """One split: paths, or an array (N, H, W) or (N, H, W, 3) of uint8, with labels (N,).

    Attributes:
        title: the folder, or a name for pictures in memory.
        decoded: the decoded files, if they are `cached`.
        levels: (black, white) of the data set's pictures with more than 8 bits, per mode.
    """

    items: Sequence[str] | np.ndarray
    labels: np.ndarray
    title: str = ""
    decoded: Sequence[np.ndarray] | None = None
    levels: Levels = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether the pictures are decoded arrays, which need no reading."""
        return isinstance(self.items, np.ndarray) or self.decoded is not None

    def open(self, index: int, at_least: int | None = None) -> Image.Image:
        """The decoded picture, mode "L" or "RGB"; a UserError if it cannot be read.

        With `at_least`, a large JPEG is decoded at reduced size, as long as its shorter side keeps
        that many pixels.
        """
        item = self.items[index] if self.decoded is None else self.decoded[index]
        if isinstance(item, str):
            return open_image(item, at_least=at_least, levels=self.levels)
        return Image.fromarray(item)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height as stored, from the file's header; a UserError if that is invalid."""
        item = self.items[index]
        return read_size(item) if isinstance(item, str) else (item.shape[1], item.shape[0])

    def cached(self, at_most: int | None = None, workers: int | None = None) -> "Pictures":
        """The same pictures, with files decoded into memory.

        `open` returns the same pixels as before, unless pictures are reduced. Forked processes,
        such as loader workers on Linux, share the memory; elsewhere each worker has a copy.

        Args:
            at_most: reduce larger pictures so that the shorter side has this many pixels; for
                training only, since prediction uses the full resolution.
            workers: processes that decode; None for one per CPU.

        Raises:
            UserError: a picture cannot be read, or the pictures need more than half of the free
                memory.
        """
        if self.in_memory:
            return self
        decoded = decode_files(list(self.items), at_most, workers, levels=self.levels)
        return replace(self, decoded=decoded)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded pictures; 0 if they are read from files on each access."""
        if isinstance(self.items, np.ndarray):
            return self.items.nbytes
        return sum({id(pixels): pixels.nbytes for pixels in self.decoded or ()}.values())

    def name(self, index: int) -> str:
        """The file's path, or `title[index]` for a picture in memory."""
        item = self.items[index]
        return item if isinstance(item, str) else f"{self.title}[{index}]"

    def take(self, indices: np.ndarray) -> "Pictures":
        """The pictures at these indices."""
        items = self.items
        chosen = items[indices] if isinstance(items, np.ndarray) else [items[i] for i in indices]
        decoded = self.decoded and [self.decoded[i] for i in indices]
        return replace(self, items=chosen, labels=self.labels[indices], decoded=decoded)

    def fingerprint(self, class_names: Sequence[str]) -> str:
        """SHA-256 of the pictures and their classes, independent of the folder's location.

        Files are identified by relative path and size, pictures in memory by their pixels.
        """
        digest = hashlib.sha256(json.dumps([class_names[label] for label in self.labels]).encode())
        if isinstance(self.items, np.ndarray):
            digest.update(np.ascontiguousarray(self.items).data)
        else:
            for path in self.items:
                with suppress(OSError):
                    name = Path(os.path.relpath(path, self.title)).as_posix()
                    digest.update(json.dumps([name, os.path.getsize(path)]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class SplitRule:
    """How validation pictures were split from the training pictures: their share and the seed."""

    share: float
    seed: int


@dataclass(frozen=True)
class PictureData:
    """A data set: class names in the order of the labels, and its splits.

    Attributes:
        findings: reports on ignored files in its folder.
        digests: SHA-256 of the pixels per file, for the files that `usable` checked.
        rule: how `with_validation` drew the validation split; None if the data set had its own.
    """

    name: str
    class_names: tuple[str, ...]
    train: Pictures
    val: Pictures | None = None
    test: Pictures | None = None
    findings: tuple[Finding, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    rule: SplitRule | None = None

    @property
    def splits(self) -> dict[str, Pictures]:
        """The existing splits, with the keys "train", "val" and "test"."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: pictures for name, pictures in splits.items() if pictures is not None}

    @property
    def in_chans(self) -> int:
        """Number of channels: 1 for grey pictures in memory, otherwise 3."""
        items = self.train.items
        return 1 if isinstance(items, np.ndarray) and items.ndim == 3 else 3

    @property
    def picture_size(self) -> float:
        """Median length in pixels of the shorter side, over a sample of the training pictures.

        Raises:
            UserError: no picture of the sample can be read.
        """
        sample = np.linspace(0, len(self.train) - 1, min(len(self.train), SIZES_SAMPLED))
        sizes = []
        for index in sample.astype(int).tolist():
            with suppress(UserError):
                sizes.append(min(self.train.size(index)))
        if not sizes:
            raise UserError(f"{self.train.title}: no picture can be read; replace the pictures")
        return median(sizes)

    def with_levels(self, levels: Levels) -> "PictureData":
        """A copy with other (black, white) levels for pictures with more than 8 bits."""
        parts = {
            name: part if part.levels == levels else replace(part, levels=levels)
            for name, part in self.splits.items()
        }
        return replace(self, **parts)  # type: ignore[arg-type]

    def with_validation(self, share: float, seed: int) -> "PictureData":
        """The data with a validation split: the existing one, or a stratified share of "train".

        Raises:
            UserError: there is no validation split, and the share is not between 0 and 1 or leaves
                one of the two splits empty.
        """
        if self.val is not None:
            return self
        if not 0 < share < 1:
            raise UserError(
                f"--val-split must lie between 0 and 1, not {share}; change it, or put validation"
                " pictures into val/"
            )
        train, val = stratified_split(self.train.labels, [1 - share, share], seed)
        if not len(train) or not len(val):
            raise UserError(self._cannot_split(share))
        return replace(
            self,
            train=self.train.take(train),
            val=self.train.take(val),
            rule=SplitRule(share, seed),
        )

    def _cannot_split(self, share: float) -> str:
        """The message for a share that leaves one of the two splits empty."""
        largest = int(np.bincount(self.train.labels).max())
        if largest < 2:
            return (
                f"{self.train.title}: no class has two pictures, one for training and one for"
                " validation; add pictures"
            )
        return (
            f"{self.train.title}: classes have at most {largest} pictures, too few for --val-split"
            f" {share}; add pictures, or give --val-split 0.5"
        )


def load_data(data_path: str, download: bool = False, download_dir: str = "data") -> PictureData:
    """Loads the data set that a data path refers to.

    Args:
        data_path: a folder (one folder per class; or train/ and optionally val/ and test/; or the
            original files of MNIST, Fashion-MNIST or CIFAR), or one of `BUILT_IN`.
        download: download a built-in data set that is missing.
        download_dir: folder of the built-in data sets.

    Raises:
        UserError: there is no such data, or it cannot be trained on.
    """
    data = find_data(data_path, download, download_dir)
    if isinstance(data, PictureData):
        return data
    refuse(data.problems)
    parts = {part: pictures_of(split, data.class_names) for part, split in data.splits.items()}
    return PictureData(
        data.name,
        data.class_names,
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        findings=tuple(passed_over(data, data_path)),
    )


def find_data(
    data_path: str, download: bool = False, download_dir: str = "data"
) -> PictureData | Listing:
    """Like `load_data`, but a folder of class folders is only listed, with all its problems."""
    folder = Path(data_path)
    if folder.is_dir():
        originals = find_originals(folder)
        return list_folder(folder) if originals is None else _from_originals(originals)
    if folder.exists():
        raise UserError(f"{data_path}: a file, not a folder; give the folder that holds the data")
    if data_path == "digits":
        return _digits()
    if data_path == "flowers102":
        return _flowers102(Path(download_dir), download)
    if data_path in DOWNLOADS:
        return _from_originals(_find_or_download(data_path, Path(download_dir), download))
    raise UserError(
        f"{data_path}: no such folder, and not a built-in data set ({', '.join(BUILT_IN)});"
        " check the path"
    )


def pictures_of(split: Split, class_names: Sequence[str]) -> Pictures:
    """The pictures of a listed split; a label is the index of the class in `class_names`."""
    indices = {name: index for index, name in enumerate(class_names)}
    paths = [path for of_class in split.classes.values() for path in of_class]
    counts = [len(of_class) for of_class in split.classes.values()]
    labels = np.repeat(np.array([indices[name] for name in split.classes], dtype=np.int64), counts)
    return Pictures(paths, labels, str(split.folder))


def _from_originals(originals: Originals) -> PictureData:
    name = originals.name
    return PictureData(
        name,
        originals.class_names,
        Pictures(*originals.train, f"{name}/train"),
        test=Pictures(*originals.test, f"{name}/test"),
    )


def _digits() -> PictureData:
    """scikit-learn's 1,797 scans of 8x8 pixels; a fixed, stratified fifth is the test set."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)
    pictures = Pictures(images, raw.target.astype(np.int64), "digits")
    train, test = stratified_split(pictures.labels, [0.8, 0.2], DIGITS_TEST_SEED)
    return PictureData("digits", DIGITS, pictures.take(train), test=pictures.take(test))


def _find_or_download(name: str, root: Path, download: bool) -> Originals:
    folder = root / name
    originals = find_originals(folder)
    if originals is None and download:
        from torchvision import datasets

        kind = {
            "mnist": datasets.MNIST,
            "fashion-mnist": datasets.FashionMNIST,
            "cifar10": datasets.CIFAR10,
            "cifar100": datasets.CIFAR100,
        }[name]
        try:
            kind(str(folder), download=True)
        except Exception as error:  # the network fails in many ways
            raise _not_downloaded(name, folder, error) from None
        originals = find_originals(folder)
    if originals is None:
        raise _not_downloaded(name, folder)
    if originals.name != name:
        raise UserError(f"{folder}: holds the files of {originals.name}; put those of {name} there")
    return originals


def _not_downloaded(name: str, folder: Path, error: Exception | None = None) -> UserError:
    """The error for a built-in data set that is missing, or whose download failed."""
    cause = f"the download failed ({error})" if error else "not downloaded yet"
    remedy = "try again" if error else "add --download"
    return UserError(f"{folder}: {name}: {cause}; {remedy}, or put {DOWNLOADS[name]} there")


def _flowers102(root: Path, download: bool) -> PictureData:
    from torchvision import datasets

    folder = root / "flowers102"
    parts = []
    for split in ("train", "val", "test"):
        try:
            parts.append(datasets.Flowers102(str(folder), split, download=download))
        except Exception as error:  # missing files, or the network failed in one of many ways
            raise _not_downloaded("flowers102", folder, error if download else None) from None
    class_names = tuple(str(name) for name in getattr(parts[0], "classes", range(102)))
    train, val, test = (
        Pictures([str(path) for path in part._image_files], np.array(part._labels), str(folder))
        for part in parts
    )
    return PictureData("flowers102", class_names, train, val, test)
