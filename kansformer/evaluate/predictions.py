"""A model's predictions on labelled pictures."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from kansformer.data import Pictures
from kansformer.errors import UserError, one_line
from kansformer.infer import Predictor


@dataclass(frozen=True)
class Predictions:
    """Predictions on the N pictures that could be read.

    Attributes:
        paths: their names, from `Pictures.name`.
        labels: (N,) their true classes.
        probabilities: (N, classes) in float64.
        unreadable: "path" and "error" of each picture that could not be read.
        seconds: total time from files to probabilities.
    """

    paths: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    unreadable: list[dict[str, str]]
    seconds: float


def predict_all(
    predictor: Predictor,
    pictures: Pictures,
    batch_size: int = 32,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Predictions:
    """Predicts every picture with the same code as `predict.py`.

    Args:
        pictures: with the model's class indices as labels.
        progress: wraps the loop over the pictures, as tqdm does.

    Raises:
        UserError: none of the pictures can be read.
    """
    started = time.perf_counter()
    kept, rows, unreadable = [], [], []
    predictions = predictor.rows(_items(pictures), batch_size)
    for index, (_, row) in enumerate(progress(predictions)):
        if isinstance(row, UserError):
            unreadable.append({"path": pictures.name(index), "error": one_line(row)})
        else:
            kept.append(index)
            rows.append(row.numpy())
    if not rows:
        raise UserError(unreadable[0]["error"])
    return Predictions(
        [pictures.name(index) for index in kept],
        pictures.labels[kept],
        np.stack(rows),
        unreadable,
        time.perf_counter() - started,
    )


def _items(pictures: Pictures) -> Iterator[str | Image.Image]:
    """Paths of pictures on disk, or the decoded pictures of a data set in memory."""
    for index, item in enumerate(pictures.items):
        yield item if isinstance(item, str) else pictures.open(index)
