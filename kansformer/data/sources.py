"""From `--data-path` to labelled pictures: folders, original files and built-in data sets.

Labels always go by class name: every split is indexed by the one list of names that the training
split gives. Nothing under the data path is written.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from kansformer.data.decoded import decode_files
from kansformer.data.images import open_image
from kansformer.data.listing import Listing, Split, list_folder, refuse
from kansformer.data.originals import DIGITS, Originals, find_originals
from kansformer.data.split import stratified_split
from kansformer.errors import UserError
from kansformer.words import number

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


@dataclass(frozen=True)
class Pictures:
    """One split: files, or an array (N, H, W) or (N, H, W, 3) of uint8, with labels (N,).

    Files may be decoded already, see `cached`.
    """

    items: Sequence[str] | np.ndarray
    labels: np.ndarray
    title: str = ""
    decoded: Sequence[np.ndarray] | None = None

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
            return open_image(item, at_least=at_least)
        return Image.fromarray(item)

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
        decoded = decode_files(list(self.items), at_most, workers)
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
        return Pictures(chosen, self.labels[indices], self.title, decoded)


@dataclass(frozen=True)
class PictureData:
    """A data set: class names in the order of the labels, and its splits, as far as it has them."""

    name: str
    class_names: tuple[str, ...]
    train: Pictures
    val: Pictures | None = None
    test: Pictures | None = None

    @property
    def in_chans(self) -> int:
        """1 for grey pictures in memory, otherwise 3."""
        items = self.train.items
        return 1 if isinstance(items, np.ndarray) and items.ndim == 3 else 3

    @property
    def picture_size(self) -> int:
        """Pixels on the shorter side of the first training picture that can be read."""
        for index in range(len(self.train) - 1):
            with suppress(UserError):
                return min(self.train.open(index).size)
        return min(self.train.open(len(self.train) - 1).size)

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
            raise UserError(
                f"{self.train.title}: {number(len(self.train), 'picture')}, too few for --val-split"
                f" {share}; add pictures"
            )
        return replace(self, train=self.train.take(train), val=self.train.take(val))


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
    return PictureData(found.name, found.class_names, **parts)


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
