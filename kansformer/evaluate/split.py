"""Chooses the pictures of a data set to evaluate on, and maps their labels to the model's."""

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
        pictures: with the model's class indices as labels.
        split: "test", "val" or "train", or "all" for a whole data set without splits.
        note: a remark for the user about the choice, or "".
    """

    pictures: Pictures
    split: str
    note: str = ""


def choose_split(data: PictureData, model: TrainedModel, split: str | None = None) -> Chosen:
    """The pictures of a split, by default the test set or, without one, the validation set.

    For data without val/, the validation set is drawn as in training, by the rule in the weights
    file. If these are not the data of the training run, the default is all pictures.

    Raises:
        UserError: there is no such split, or the model does not know a class.
    """
    note = ""
    if split is None and (data.test is not None or data.val is not None):
        split = "val" if data.test is None else "test"
    if split is None:
        split, drawn = "all", None
        if set(data.class_names) == set(model.class_names):
            with suppress(UserError):  # pictures that training would have rejected
                drawn = draw_as_in_training(data, model)
        if drawn is not None and drawn.is_same:
            split, data, note = "val", drawn.data, drawn.note
        elif data.name == model.training_info.get("data"):
            note = (
                "the model was trained on a data set of this name, which may contain these pictures"
            )
    elif split != "test" and data.val is None:
        drawn = draw_as_in_training(data, model)
        if drawn is None:
            raise UserError(
                f"{data.name}: has no val/, and the weights file does not record how training"
                " split it; remove --split and --calibrate, or use a folder with val/"
            )
        data, note = drawn.data, drawn.note
    pictures = data.splits.get("train" if split == "all" else split)
    if pictures is None:
        raise UserError(f"{data.name}: has no test pictures; use another --split, or none")
    labels = labels_by_name(pictures.labels, data.class_names, model.class_names, data.name)
    return Chosen(replace(pictures, labels=labels, levels=model.preprocessing.levels), split, note)


def labels_by_name(
    labels: np.ndarray, names: Sequence[str], model_names: Sequence[str], title: str
) -> np.ndarray:
    """Maps labels (N,), which index `names`, to indices of `model_names`.

    Args:
        title: name of the data, for the error.

    Raises:
        UserError: a label whose class is not one of the model's.
    """
    indices = {name: index for index, name in enumerate(model_names)}
    unknown = [names[label] for label in np.unique(labels) if names[label] not in indices]
    if unknown:
        raise UserError(
            f"{title}: the model does not know the class {_listed([repr(n) for n in unknown])},"
            f" only {_listed(model_names)}; rename or remove the class, or use other --weights"
        )
    table = np.array([indices.get(name, -1) for name in names], dtype=np.int64)
    return table[labels]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


@dataclass(frozen=True)
class Drawn:
    """Data with a validation set drawn by the rule of a training run.

    Attributes:
        is_same: whether this is known to be the validation set of that run.
        note: how the set was drawn, and whether its pictures may differ from those of the run.
    """

    data: PictureData
    is_same: bool
    note: str


def draw_as_in_training(data: PictureData, model: TrainedModel) -> Drawn | None:
    """Draws the validation set as in training; None if the weights file does not record how."""
    recorded = model.split
    if recorded is None or recorded.rule is None:
        return None
    share, seed = recorded.rule.share, recorded.rule.seed
    note = f"validation set drawn as in training: share {share:g}, seed {seed}"
    whole = data.with_validation(share, seed)
    if recorded.is_of(whole):
        return Drawn(whole, True, note)
    data, findings = usable(data)  # training drops unreadable pictures before it splits
    data = data.with_validation(share, seed)
    is_same = recorded.is_of(data)
    note += "".join(f"; left out: {f.text}" for f in findings if f.severity == "error")
    trained_on = model.training_info.get("data")
    if not is_same and (recorded.validation or data.name != trained_on):
        note += f"; but the model was trained on {trained_on}, whose pictures may differ"
    return Drawn(data, is_same, note)
