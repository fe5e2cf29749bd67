"""Prediction for picture files and pictures in memory."""

import copy
import glob
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kansformer.checkpoint import TrainedModel, load_model
from kansformer.data.augment import mirrors
from kansformer.data.images import Source, is_source
from kansformer.data.listing import has_unread_name, walk
from kansformer.device import choose_device
from kansformer.errors import UserError, one_line

# anything that `open_image` accepts, or a (name, file) pair
Picture = Source | tuple[str, io.BytesIO]


class Predictor:
    """A model with its preprocessing, class names and temperature, ready to classify.

    Args:
        model: never changed; it is copied if it is on another device or in training mode.
        device: device to compute on, the CPU if None.
        tta: whether to average the probabilities of each picture and its mirror image.

    Raises:
        UserError: `tta` for a model that was not trained on mirrored pictures.

    Example:
        predictor = Predictor.load("weights/digits.safetensors")
        predictor(["one.png", "two.png"], topk=3)
    """

    def __init__(
        self, model: TrainedModel, device: torch.device | None = None, tta: bool = False
    ) -> None:
        if tta:
            check_mirroring(model)
        self.device = device or torch.device("cpu")
        if model.training or model.pos_embed.device != self.device:
            model = copy.deepcopy(model).to(self.device).eval()
        self.model = model
        self.tta = tta

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", tta: bool = False) -> "Predictor":
        """Reads a weights file.

        Raises:
            UserError: the file is missing, damaged or not a KANsformer weights file; there is no
                such device; or `tta` for a model that was not trained on mirrored pictures.
        """
        chosen = choose_device(device)
        return cls(load_model(path).to(chosen), chosen, tta)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the model's outputs."""
        return self.model.class_names

    def __call__(
        self, images: Picture | Iterable[Picture], topk: int = 5, batch_size: int = 32
    ) -> list[dict[str, Any]]:
        """Classifies one or more pictures.

        Args:
            images: one picture, or an iterable of pictures: paths, open files, bytes, PIL images,
                arrays, or (name, file) pairs.

        Returns:
            An answer per picture, {"path", "top": [{"class", "index", "probability"}, ...]} or
            {"path", "error"}.
        """
        named = isinstance(images, tuple) and len(images) == 2 and isinstance(images[1], io.IOBase)
        if named or is_source(images) or isinstance(images, Tensor):  # a tensor gets an error
            images = [images]  # type: ignore[list-item]
        return list(self.stream(images, topk, batch_size))  # type: ignore[arg-type]

    def stream(
        self,
        images: Iterable[Picture],
        topk: int = 5,
        batch_size: int = 32,
        min_confidence: float = 0.0,
    ) -> Iterator[dict[str, Any]]:
        """Yields an answer per picture, in order, computed a batch at a time.

        An answer is {"path", "top": [{"class", "index", "probability"}, ...]}, the most likely
        class first, or {"path", "error"} for a picture that cannot be read. The path is None for a
        picture without a path or name. If no class reaches `min_confidence`, the answer also has
        "unknown": True.
        """
        for path, row in self.rows(images, batch_size):
            answer: dict[str, Any] = {"path": path}
            if isinstance(row, UserError):
                answer["error"] = one_line(row)
            else:
                answer["top"] = self._top(row, topk)
                if answer["top"][0]["probability"] < min_confidence:
                    answer["unknown"] = True
            yield answer

    def rows(
        self, images: Iterable[Picture], batch_size: int = 32
    ) -> Iterator[tuple[str | None, Tensor | UserError]]:
        """Yields each picture's path, and its probabilities (classes,) or the error reading it."""
        pending = iter(images)
        while batch := list(islice(pending, batch_size)):
            inputs = [self._read(image) for image in batch]
            tensors = [tensor for _, tensor in inputs if isinstance(tensor, Tensor)]
            probabilities = iter(self.probabilities(torch.stack(tensors)) if tensors else ())
            for path, tensor in inputs:
                yield path, next(probabilities) if isinstance(tensor, Tensor) else tensor

    def _read(self, image: Picture) -> tuple[str | None, Tensor | UserError]:
        """A picture's path, and the preprocessed picture or the error reading it."""
        path = None
        if isinstance(image, tuple):
            path, image = image
        elif isinstance(image, str | os.PathLike):
            path = os.fspath(image)
        try:
            return path, self.model.preprocessing(self.model.preprocessing.open(image, path))
        except UserError as error:
            return path, error

    @torch.no_grad()
    def probabilities(self, batch: Tensor) -> Tensor:
        """Preprocessed pictures (B, C, S, S) to class probabilities (B, classes).

        They are float64 on the CPU, so that very small ones do not become zero.
        """
        views = [batch, batch.flip(-1)] if self.tta else [batch]
        logits = torch.stack([self.logits(view) for view in views]).cpu().double()
        return (logits / self.model.temperature).softmax(dim=-1).mean(dim=0)

    def logits(self, batch: Tensor) -> Tensor:
        """Preprocessed pictures (B, C, S, S) to the model's outputs (B, classes)."""
        return self.model(batch.to(self.device))

    def _top(self, probabilities: Tensor, topk: int) -> list[dict[str, Any]]:
        values, indices = probabilities.topk(min(topk, len(probabilities)))
        return [
            {"class": self.class_names[index], "index": index, "probability": value}
            for index, value in zip(indices.tolist(), values.tolist(), strict=True)
        ]


def answer_as_text(answer: dict[str, Any]) -> str:
    """An answer with "top" as text: the path, then a line per class."""
    lines = [f"{answer['path']}  unknown" if "unknown" in answer else answer["path"]]
    lines += [f"  {100 * row['probability']:6.2f} %  {row['class']}" for row in answer["top"]]
    return "\n".join(lines)


def answer_as_row(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as a row of a table: its most likely class or its error, other cells empty."""
    best = answer.get("top", [{}])[0]
    return {
        "path": answer["path"],
        "class": best.get("class", ""),
        "probability": best.get("probability", ""),
        "unknown": str(answer.get("unknown", False)).lower() if best else "",
        "error": answer.get("error", ""),
    }


def check_mirroring(model: TrainedModel) -> None:
    """Raises a UserError unless the model was trained on mirrored pictures as well.

    Without them, a mirror image may belong to another class, as with letters and digits.
    """
    policy = model.training_settings.get("augment")
    if not isinstance(policy, str) or not mirrors(policy):
        if policy:
            cause = f"the model was trained without mirrored pictures (--augment {policy})"
        else:
            cause = "the weights file does not record whether training mirrored pictures"
        raise UserError(
            f"--tta: {cause}, so a mirror image may belong to another class; remove --tta"
        )


def find_pictures(inputs: Sequence[str], unread: list[str] | None = None) -> list[str]:
    """Expands arguments to picture files: files, folders (searched recursively) and globs.

    A name that matches nothing is kept, so that it gets an answer with an error.

    Args:
        unread: a list, extended by files in these folders whose names are those of pictures in
            unsupported formats.
    """
    files: list[str] = []
    for name in inputs:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        for match in matches or [name]:
            inside, others, _ = walk(match) if os.path.isdir(match) else ([], [], [])
            files += inside or [match]
            if unread is not None and inside:
                unread += filter(has_unread_name, others)
    return files
