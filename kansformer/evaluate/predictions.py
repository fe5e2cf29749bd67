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
    """What was predicted on those pictures that can be read.

    Attributes:
        paths: of the N pictures that could be read, as in `Pictures.name`.
        labels: (N,) their true classes.
        probabilities: (N, classes) in float64.
        unreadable: for each of the others its "path" and "error".
        seconds: from files to probabilities, all pictures together.
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
    """Predicts every picture, by the way that `predict.py` goes.

    Args:
        pictures: labelled by the model's classes.
        progress: wraps the loop over the pictures, as tqdm does.

    Raises:
        UserError: none of the pictures can be read.
    """
    started = time.perf_counter()
    kept, rows, unreadable = [], [], []
    answers = predictor.rows(_items(pictures), batch_size)
    for index, (_, found) in enumerate(progress(answers)):
        if isinstance(found, UserError):
            unreadable.append({"path": pictures.name(index), "error": one_line(found)})
        else:
            kept.append(index)
            rows.append(found.numpy())
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
    """Paths, or decoded pictures where they are in memory."""
    for index, item in enumerate(pictures.items):
        yield item if isinstance(item, str) else pictures.open(index)
