"""The data sets of the study, and what every model is trained with on them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kansformer.data import PictureData, load_data
from kansformer.data.split_folder import split_folder
from kansformer.errors import UserError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist


@dataclass(frozen=True)
class PictureSet:
    """A data set of the study.

    `load` takes the folder in which the pictures are and a folder of its own to write to. Fields of
    `TrainConfig` in `settings` are shared by all models; those in `choosing` take their place where
    a model's learning rate is chosen, by so many seeds.
    """

    title: str
    load: Callable[[Path, Path], PictureData]
    settings: dict[str, Any]
    choosing: dict[str, Any] = field(default_factory=dict)
    choosing_seeds: int = 1
    seeds: int = 3


def _digits(places: Path, folder: Path) -> PictureData:
    return load_data("digits")


def _fashion_mnist(places: Path, folder: Path) -> PictureData:
    return load_data(str(FASHION if FASHION.is_dir() else _there(places / "fashion-mnist")))


def _fashion_mnist_20k(places: Path, folder: Path) -> PictureData:
    """Its first training pictures train and its last ones validate."""
    data = _fashion_mnist(places, folder)
    first, last = np.arange(20_000), np.arange(50_000, 60_000)
    return replace(data, train=data.train.take(first), val=data.train.take(last))


def _sign_digits(places: Path, folder: Path) -> PictureData:
    """Split by ranges of a hundred numbers, so that hardly a hand is on two sides; one for all."""
    source = _there(places / "sign-digits")
    split_folder(source, folder, (0.7, 0.1, 0.2), 0, symlink=True, group_regex=r"IMG_(\d\d)")
    return _in_memory(load_data(str(folder)))


def _cifar10_jpeg(places: Path, folder: Path) -> PictureData:
    """Its val/ is what is tested on here; what validates is a share of its train/."""
    data = load_data(str(_there(places / "cifar10-jpeg")))
    return _in_memory(replace(data, val=None, test=data.val))


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; unpack the pictures there, or give --places")
    return folder


def _in_memory(data: PictureData) -> PictureData:
    parts = {
        name: pictures.cached(workers=1)
        for name in ("train", "val", "test")
        if (pictures := getattr(data, name)) is not None
    }
    return replace(data, **parts)


# 16 tokens of overlapping patches; all models have the same. These are not the recipes of
# `train.py`, so that results stay what they are where a recipe gets better.
SMALL = {"model": "kansformer_micro_patch8_32", "stem": "conv", "lr": 2e-3}
FASHION_MNIST = {
    **SMALL, "augment": "mirror", "val_split": 0.1, "batch_size": 128, "epochs": 4,
    "warmup_epochs": 1.0, "label_smoothing": 0.0,
}  # fmt: skip

SETS = {
    "digits": PictureSet(
        "digits", _digits,
        {  # plain patches: with convolutions all models come close to all there is to be had
            "model": "kansformer_micro_patch2_8", "stem": "patch", "augment": "digits",
            "val_split": 0.1, "epochs": 20, "batch_size": 64, "lr": 2e-3, "warmup_epochs": 3.0,
            "mixup": 0.4, "cutmix": 0.4, "ema": 0.99, "eval_metric": "loss",
        },
        {"val_split": 0.3}, choosing_seeds=2, seeds=10,
    ),
    "fashion-mnist": PictureSet(
        "Fashion-MNIST", _fashion_mnist, FASHION_MNIST, {"epochs": 1}, seeds=6
    ),
    "fashion-mnist-20k": PictureSet(
        "Fashion-MNIST, a third of it", _fashion_mnist_20k, FASHION_MNIST, {"epochs": 2}
    ),
    "sign-digits": PictureSet(
        "sign-digits, by ranges of people", _sign_digits,
        {
            **SMALL, "augment": "signs", "epochs": 40, "batch_size": 64, "warmup_epochs": 5.0,
            "eval_metric": "loss",
        },
        {"epochs": 20}, choosing_seeds=2, seeds=10,
    ),
    "cifar10-jpeg": PictureSet(
        "CIFAR-10 (JPEG, 20k)", _cifar10_jpeg,
        {**SMALL, "augment": "small", "val_split": 0.1, "epochs": 8, "batch_size": 128},
        {"epochs": 3}, seeds=6,
    ),
}  # fmt: skip
