"""What the page and the JSON endpoint ask of the model, one question at a time."""

import io
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kansformer.infer import Predictor
from kansformer.interpret.attention import explain
from kansformer.interpret.decision import Decision, explain_decision, has_functions


@dataclass(frozen=True)
class Look:
    """One picture, looked at closely.

    Attributes:
        top: the likeliest classes, as in `Predictor.stream`.
        attention: where the model looks.
        decision: what its learned functions did; None if it has none.
    """

    top: list[dict[str, Any]]
    attention: Image.Image
    decision: Decision | None


class Service:
    """A model that answers several threads, each in its turn.

    Args:
        name: what to call the model.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.predictor = predictor
        self.name = name
        self._turn = threading.Lock()

    def answers(self, files: Sequence[tuple[str, bytes]], topk: int = 5) -> list[dict[str, Any]]:
        """Answers of `Predictor.stream` to files in memory, each with its name."""
        with self._turn:
            return self.predictor([(name, io.BytesIO(data)) for name, data in files], topk)

    def look(self, path: str | os.PathLike[str], name: str | None = None) -> Look:
        """Classifies and explains one picture.

        Args:
            name: what to call it in an error.

        Raises:
            UserError: the picture cannot be read.
        """
        model = self.predictor.model
        image = model.preprocessing.open(path, name)
        with self._turn:
            (answer,) = self.predictor(image)
            decision = None
            if has_functions(model):
                decision = explain_decision(
                    model, model.preprocessing(image).to(self.predictor.device)
                )
            return Look(answer["top"], explain(model, image), decision)

    def table(self, files: Sequence[tuple[str, Path]]) -> list[dict[str, Any]]:
        """Answers to files by name and path, read one after the other, as they may be large."""
        return [self.answers([(name, path.read_bytes())], topk=1)[0] for name, path in files]
