"""Prediction on picture files or pictures in memory."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kansformer.checkpoint import TrainedModel, load_model
from kansformer.data.images import open_image
from kansformer.data.listing import walk_pictures
from kansformer.device import choose_device
from kansformer.errors import UserError, one_line

Picture = str | os.PathLike[str] | Image.Image


class Predictor:
    """A model with its preprocessing and class names, ready to classify.

    Example:
        predictor = Predictor.load("weights/digits.safetensors")
        predictor(["one.png", "two.png"], topk=3)
    """

    def __init__(self, model: TrainedModel, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.model = model.to(self.device).eval()

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "Predictor":
        """Reads a weights file.

        Raises:
            UserError: the file cannot be used, see `load_model`; or there is no such device.
        """
        return cls(load_model(path), choose_device(device))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the model's outputs."""
        return self.model.class_names

    def __call__(
        self, images: Picture | Iterable[Picture], topk: int = 5, batch_size: int = 32
    ) -> list[dict[str, Any]]:
        """Classifies pictures, given as paths or in memory; see `stream` for the answers."""
        if isinstance(images, str | os.PathLike | Image.Image):
            images = [images]
        return list(self.stream(images, topk, batch_size))

    def stream(
        self, images: Iterable[Picture], topk: int = 5, batch_size: int = 32
    ) -> Iterator[dict[str, Any]]:
        """Answers in the order of the pictures, one for each, a batch at a time.

        An answer is {"path", "top": [{"class", "index", "probability"}, ...]}, the likeliest class
        first, or {"path", "error"} for a picture that cannot be read. The path is None for a
        picture in memory.
        """
        pending = iter(images)
        while batch := list(islice(pending, batch_size)):
            answers: list[dict[str, Any]] = []
            tensors: list[Tensor] = []
            readable: list[dict[str, Any]] = []  # the answer that each tensor belongs to
            for image in batch:
                answer: dict[str, Any] = {"path": None}
                answers.append(answer)
                try:
                    if not isinstance(image, Image.Image):
                        answer["path"] = os.fspath(image)
                        image = open_image(image)
                    tensors.append(self.model.preprocessing(image))
                    readable.append(answer)
                except UserError as error:
                    answer["error"] = one_line(error)
            if tensors:
                probabilities = self.probabilities(torch.stack(tensors))
                for answer, row in zip(readable, probabilities, strict=True):
                    answer["top"] = self._top(row, topk)
            yield from answers

    @torch.no_grad()
    def probabilities(self, batch: Tensor) -> Tensor:
        """Preprocessed pictures (B, C, S, S) to class probabilities (B, classes) on the CPU."""
        return self.model(batch.to(self.device)).float().softmax(dim=-1).cpu()

    def _top(self, probabilities: Tensor, topk: int) -> list[dict[str, Any]]:
        values, indices = probabilities.topk(min(topk, len(probabilities)))
        return [
            {"class": self.class_names[index], "index": index, "probability": value}
            for index, value in zip(indices.tolist(), values.tolist(), strict=True)
        ]


def find_pictures(inputs: Sequence[str]) -> list[str]:
    """The picture files that arguments stand for: files, folders (searched in depth) and globs.

    A name that stands for nothing is kept, so that it gets an answer with an error.
    """
    found: list[str] = []
    for name in inputs:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        for match in matches or [name]:
            inside = walk_pictures(match) if os.path.isdir(match) else []
            found += inside or [match]
    return found
