"""Which pictures of a data set to evaluate on, with labels in the order of the model's classes."""

from collections.abc import Sequence
from contextlib import suppress
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
    """The pictures of a split, by default the test pictures, else the validation pictures.

    Where the data have no val/, the validation pictures are those of the training, by the rule in
    the weights file. By default all pictures are taken if they are not the ones it was trained on.

    Raises:
        UserError: there is no such split, or a class that the model does not know.
    """
    note = ""
    if split is None and (data.test is not None or data.val is not None):
        split = "val" if data.test is None else "test"
    if split is None:
        split, drawn = "all", None
        if set(data.class_names) == set(model.class_names):
            with suppress(UserError):  # pictures that no training would have begun with
                drawn = draw_as_in_training(data, model)
        if drawn is not None and drawn.is_same:
            split, data, note = "val", drawn.data, drawn.note
        elif data.name == model.training_info.get("data"):
            note = "a data set of this name was trained on: these pictures may be among those"
    elif split != "test" and data.val is None:
        drawn = draw_as_in_training(data, model)
        if drawn is None:
            raise UserError(
                f"{data.name}: has no val/, and the weights file does not say how the training"
                " split it; leave out --split and --calibrate, or give a folder with val/"
            )
        data, note = drawn.data, drawn.note
    found = data.splits.get("train" if split == "all" else split)
    if found is None:
        raise UserError(f"{data.name}: has no test pictures; give another --split, or none")
    labels = labels_by_name(found.labels, data.class_names, model.class_names, data.name)
    return Chosen(replace(found, labels=labels, levels=model.preprocessing.levels), split, note)


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


@dataclass(frozen=True)
class Drawn:
    """Data with validation pictures drawn by the rule of a training.

    Attributes:
        is_same: whether they are known to be the validation pictures of that training.
        note: how they were drawn, and whether they may be other pictures.
    """

    data: PictureData
    is_same: bool
    note: str


def draw_as_in_training(data: PictureData, model: TrainedModel) -> Drawn | None:
    """Draws validation pictures as the training did; None if the weights file does not say how."""
    recorded = model.split
    if recorded is None or recorded.rule is None:
        return None
    share, seed = recorded.rule.share, recorded.rule.seed
    note = f"split as in training: a share of {share:g} validates, seed {seed}"
    whole = data.with_validation(share, seed)
    if recorded.is_of(whole):
        return Drawn(whole, True, note)
    data, findings = usable(data)  # training leaves out what cannot be read before it splits
    data = data.with_validation(share, seed)
    is_same = recorded.is_of(data)
    note += "".join(f"; left out: {f.text}" for f in findings if f.severity == "error")
    trained_on = model.training_info.get("data")
    if not is_same and (recorded.validation or data.name != trained_on):
        note += f"; but it was trained on {trained_on}, which may be other pictures"
    return Drawn(data, is_same, note)
