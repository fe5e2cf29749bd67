"""Which pictures of a data set to evaluate on, with labels in the order of the model's classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kansformer.checkpoint import TrainedModel
from kansformer.data import PictureData, Pictures, usable
from kansformer.errors import UserError


@dataclass(frozen=True)
class Chosen:
    """Pictures to evaluate on.

    Attributes:
        pictures: labelled by the model's classes.
        split: "test", "val", "train", or "all": a flat folder as it is.
        note: what one has to know about the choice, or "".
    """

    pictures: Pictures
    split: str
    note: str = ""


def choose_split(data: PictureData, model: TrainedModel, split: str | None = None) -> Chosen:
    """The pictures of a split; by default the test pictures, else val/, else all.

    Where the data have no val/, the validation pictures are those of the training: its share and
    seed are in the weights file.

    Raises:
        UserError: there is no such split, or a class that the model does not know.
    """
    note = ""
    if split is None and data.test is None and data.val is None:
        chosen, split = data.train, "all"
        if data.name == model.training_info.get("data"):
            note = "a data set of this name was trained on: these pictures may be among those"
    else:
        split = split or ("val" if data.test is None else "test")
        if split != "test" and data.val is None:
            data, note = _split_as_in_training(data, model)
        found = {"train": data.train, "val": data.val, "test": data.test}[split]
        if found is None:
            raise UserError(f"{data.name}: has no test pictures; give another --split, or none")
        chosen = found
    labels = labels_by_name(chosen.labels, data.class_names, model.class_names, data.name)
    return Chosen(replace(chosen, labels=labels), split, note)


def labels_by_name(
    labels: np.ndarray, names: Sequence[str], model_names: Sequence[str], title: str
) -> np.ndarray:
    """Labels (N,) by one list of class names as labels by the model's.

    Raises:
        UserError: labels of a class that is not among the model's; `title` says of what.
    """
    places = {name: index for index, name in enumerate(model_names)}
    unknown = [names[label] for label in np.unique(labels) if names[label] not in places]
    if unknown:
        raise UserError(
            f"{title}: the weights do not know the class {_some([repr(n) for n in unknown])}, only"
            f" {_some(model_names)}; rename the class or take it out, or give other --weights"
        )
    table = np.array([places.get(name, -1) for name in names], dtype=np.int64)
    return table[labels]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _split_as_in_training(data: PictureData, model: TrainedModel) -> tuple[PictureData, str]:
    """The data with the validation split of the training, and how it was made."""
    share, seed = (model.training_settings.get(name) for name in ("val_split", "seed"))
    if not isinstance(share, float) or not isinstance(seed, int):
        raise UserError(
            f"{data.name}: has no val/, and the weights file does not say how the training split"
            " it; leave out --split and --calibrate, or give a folder with val/"
        )
    data, findings = usable(data)  # as training does before it splits
    note = f"split as in training: a share of {share:g} validates, seed {seed}"
    note += "".join(f"; left out: {finding.text}" for finding in findings)
    trained_on = model.training_info.get("data")
    if data.name != trained_on:
        note += f"; but it was trained on {trained_on}, which may be other pictures"
    return data.with_validation(share, seed), note
