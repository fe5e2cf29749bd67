"""The model behind the page and the JSON endpoint, for one request at a time."""

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
    """The classification of one picture, and its explanation.

    Attributes:
        top: the most likely classes, [{"class", "index", "probability"}, ...].
        attention: the attention map over the picture.
        decision: the contributions of the learned functions; None if there are none.
    """

    top: list[dict[str, Any]]
    attention: Image.Image
    decision: Decision | None


class Service:
    """A model that several threads can use; a lock serializes their requests.

    Args:
        name: name of the model on the page.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.predictor = predictor
        self.name = name
        self._lock = threading.Lock()

    def answers(self, files: Sequence[tuple[str, bytes]], topk: int = 5) -> list[dict[str, Any]]:
        """Classifies (name, contents) pairs; the answers are those of `Predictor.stream`."""
        with self._lock:
            return self.predictor([(name, io.BytesIO(data)) for name, data in files], topk)

    def look(self, path: str | os.PathLike[str], name: str | None = None) -> Look:
        """Classifies and explains one picture.

        Args:
            name: name of the picture in error messages.

        Raises:
            UserError: the picture cannot be read.
        """
        model = self.predictor.model
        image = model.preprocessing.open(path, name)
        with self._lock:
            (answer,) = self.predictor(image)
            decision = None
            if has_functions(model):
                decision = explain_decision(
                    model, model.preprocessing(image).to(self.predictor.device)
                )
            return Look(answer["top"], explain(model, image), decision)

    def table(self, files: Sequence[tuple[str, Path]]) -> list[dict[str, Any]]:
        """Classifies (name, path) pairs; files are read one by one, because they may be large."""
        return [self.answers([(name, path.read_bytes())], topk=1)[0] for name, path in files]
