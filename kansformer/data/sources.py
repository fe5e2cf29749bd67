"""From `--data-path` to labelled pictures: folders, original files and built-in data sets.

Labels always go by class name: every split is indexed by the one list of names that the training
split gives. Nothing under the data path is written.
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

# what a user without a network puts into the folder
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
SIZES_SAMPLED = 99  # pictures by which the size of all is told


@dataclass(frozen=True, eq=False)  # arrays have no one truth value to compare by
class Pictures:
    """One split: files, or an array (N, H, W) or (N, H, W, 3) of uint8, with labels (N,).

    Files may be decoded already, see `cached`. `levels` are of the data set, see `open_image`.
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
        """Whether the pictures are arrays, so that reading one costs next to nothing."""
        return isinstance(self.items, np.ndarray) or self.decoded is not None

    def open(self, index: int, at_least: int | None = None) -> Image.Image:
        """The decoded picture, mode "L" or "RGB"; a UserError if it cannot be read.

        See `open_image` for `at_least`.
        """
        item = self.items[index] if self.decoded is None else self.decoded[index]
        if isinstance(item, str):
            return open_image(item, at_least=at_least, levels=self.levels)
        return Image.fromarray(item)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height as stored, from a file's header; a UserError if it has none."""
        item = self.items[index]
        return read_size(item) if isinstance(item, str) else (item.shape[1], item.shape[0])

    def cached(self, at_most: int | None = None, workers: int | None = None) -> "Pictures":
        """The same pictures, with files decoded into memory once.

        Nothing changes in what `open` gives, unless pictures are reduced. Processes that are
        forked, as loaders do on Linux, share the memory; elsewhere each takes a copy.

        Args:
            at_most: reduce larger pictures, so that the shorter side has so many pixels; for
                training only, as prediction sees the whole picture.
            workers: processes that decode; None for one per CPU.

        Raises:
            UserError: a picture cannot be read, or all take more than half of the free memory.
        """
        if self.in_memory:
            return self
        decoded = decode_files(list(self.items), at_most, workers, levels=self.levels)
        return replace(self, decoded=decoded)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded pictures; 0 if they are read from files each time."""
        if isinstance(self.items, np.ndarray):
            return self.items.nbytes
        return sum({id(pixels): pixels.nbytes for pixels in self.decoded or ()}.values())

    def name(self, index: int) -> str:
        """The file's path, or `title[index]` for a picture in memory."""
        item = self.items[index]
        return item if isinstance(item, str) else f"{self.title}[{index}]"

    def take(self, indices: np.ndarray) -> "Pictures":
        """The pictures at these places."""
        items = self.items
        chosen = items[indices] if isinstance(items, np.ndarray) else [items[i] for i in indices]
        decoded = self.decoded and [self.decoded[i] for i in indices]
        return replace(self, items=chosen, labels=self.labels[indices], decoded=decoded)

    def fingerprint(self, class_names: Sequence[str]) -> str:
        """SHA-256 of the pictures and their classes, wherever their folder lies.

        Files are known by their paths within it and their sizes, pictures in memory by their
        pixels.
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
    """By what rule a share of the training pictures became the validation pictures."""

    share: float
    seed: int


@dataclass(frozen=True)
class PictureData:
    """A data set: class names in the order of the labels, and its splits, as far as it has them.

    Attributes:
        findings: what was passed over in its folder.
        digests: of the pixels, by file, of files that were looked at (see `usable`).
        rule: how `with_validation` made the validation split, if it did.
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
        """The splits that there are, by the names "train", "val" and "test"."""
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: pictures for name, pictures in found.items() if pictures is not None}

    @property
    def in_chans(self) -> int:
        """1 for grey pictures in memory, otherwise 3."""
        items = self.train.items
        return 1 if isinstance(items, np.ndarray) and items.ndim == 3 else 3

    @property
    def picture_size(self) -> float:
        """Pixels on the shorter side of the training pictures: the median of a sample."""
        places = np.linspace(0, len(self.train) - 1, min(len(self.train), SIZES_SAMPLED))
        sizes = []
        for place in places.astype(int).tolist():
            with suppress(UserError):
                sizes.append(min(self.train.size(place)))
        if not sizes:
            raise UserError(f"{self.train.title}: none of its pictures can be read")
        return median(sizes)

    def with_levels(self, levels: Levels) -> "PictureData":
        """The same data with other levels for its pictures of more than 8 bits."""
        parts = {
            name: part if part.levels == levels else replace(part, levels=levels)
            for name, part in self.splits.items()
        }
        return replace(self, **parts)  # type: ignore[arg-type]

    def with_validation(self, share: float, seed: int) -> "PictureData":
        """The same data with a validation split: its own, or else a seeded share of the training.

        Raises:
            UserError: it has none, and the share is not between 0 and 1 or leaves one side without
                pictures.
        """
        if self.val is not None:
            return self
        if not 0 < share < 1:
            raise UserError(
                f"--val-split must lie between 0 and 1, not {share}; or put validation pictures"
                " into val/"
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
        """Why a share of the training pictures leaves one side without any, and what to do."""
        largest = int(np.bincount(self.train.labels).max())
        if largest < 2:
            return (
                f"{self.train.title}: no class has two pictures, one to train on and one to"
                " validate; add pictures"
            )
        return (
            f"{self.train.title}: classes have {largest} pictures at most, of which --val-split"
            f" {share} leaves none for one side; add pictures, or give --val-split 0.5"
        )


def load_data(data_path: str, download: bool = False, download_dir: str = "data") -> PictureData:
    """Finds the pictures that a data path stands for.

    Args:
        data_path: a folder (one folder per class; or train/ and perhaps val/ and test/; or the
            original files of MNIST, Fashion-MNIST or CIFAR), or one of `BUILT_IN`.
        download: fetch a built-in data set that is not there.
        download_dir: where built-in data sets are looked for and put.

    Raises:
        UserError: there is no such data, or it cannot be trained on.
    """
    found = find_data(data_path, download, download_dir)
    if isinstance(found, PictureData):
        return found
    refuse(found.problems)
    parts = {part: pictures_of(split, found.class_names) for part, split in found.splits.items()}
    return PictureData(
        found.name,
        found.class_names,
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        findings=tuple(passed_over(found, data_path)),
    )


def find_data(
    data_path: str, download: bool = False, download_dir: str = "data"
) -> PictureData | Listing:
    """The same, but a folder of class folders is only listed, whatever is wrong in it."""
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
        f"{data_path}: no such folder, and no built-in data set ({', '.join(BUILT_IN)});"
        " check the path"
    )


def pictures_of(split: Split, class_names: Sequence[str]) -> Pictures:
    """The pictures of a listed split, labelled by the places of their classes in `class_names`."""
    place = {name: index for index, name in enumerate(class_names)}
    paths = [path for found in split.classes.values() for path in found]
    counts = [len(found) for found in split.classes.values()]
    labels = np.repeat(np.array([place[name] for name in split.classes], dtype=np.int64), counts)
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
    """scikit-learn's 1,797 scans of 8x8 pixels; a fixed fifth of them, by class, is the test."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)
    pictures = Pictures(images, raw.target.astype(np.int64), "digits")
    train, test = stratified_split(pictures.labels, [0.8, 0.2], DIGITS_TEST_SEED)
    return PictureData("digits", DIGITS, pictures.take(train), test=pictures.take(test))


def _find_or_download(name: str, root: Path, download: bool) -> Originals:
    place = root / name
    found = find_originals(place)
    if found is None and download:
        from torchvision import datasets

        kind = {
            "mnist": datasets.MNIST,
            "fashion-mnist": datasets.FashionMNIST,
            "cifar10": datasets.CIFAR10,
            "cifar100": datasets.CIFAR100,
        }[name]
        try:
            kind(str(place), download=True)
        except Exception as error:  # the network fails in many ways
            raise _cannot_get(name, place, f"not there: the download failed ({error})") from None
        found = find_originals(place)
    if found is None:
        raise _cannot_get(name, place, "not there; add --download to fetch it")
    if found.name != name:
        raise UserError(f"{place}: holds the files of {found.name}; put those of {name} there")
    return found


def _cannot_get(name: str, place: Path, cause: str) -> UserError:
    return UserError(f"{place}: {name} is {cause}; or put {DOWNLOADS[name]} there")


def _flowers102(root: Path, download: bool) -> PictureData:
    from torchvision import datasets

    place = root / "flowers102"
    parts = []
    for split in ("train", "val", "test"):
        try:
            parts.append(datasets.Flowers102(str(place), split, download=download))
        except Exception as error:  # missing files, or the network failed in one of many ways
            if download:
                cause = f"not there: the download failed ({error})"
            else:
                cause = "not there; add --download to fetch it"
            raise _cannot_get("flowers102", place, cause) from None
    class_names = tuple(str(name) for name in getattr(parts[0], "classes", range(102)))
    train, val, test = (
        Pictures([str(path) for path in part._image_files], np.array(part._labels), str(place))
        for part in parts
    )
    return PictureData("flowers102", class_names, train, val, test)
