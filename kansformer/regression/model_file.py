"""Saves a fitted estimator in one safetensors file, with JSON metadata under one key.

The metadata contain the kind of estimator, its parameters, input names, classes and history.
Nothing is ever unpickled.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save as to_safetensors
from sklearn.utils.validation import check_is_fitted

from kansformer.errors import UserError
from kansformer.files import to_json, write_bytes
from kansformer.regression.estimators import KANClassifier, KANRegressor

FORMAT_VERSION = 1
METADATA_KEY = "kansformer-regression"
KINDS: dict[str, type[KANRegressor] | type[KANClassifier]] = {
    "regression": KANRegressor,
    "classification": KANClassifier,
}
LABEL_KINDS = "biufUO"  # NumPy's codes for booleans, numbers, strings and objects


def save_estimator(path: str | Path, estimator: KANRegressor | KANClassifier) -> None:
    """Saves a fitted estimator; an existing file is replaced only when the new one is complete.

    A `random_state` that is a generator is not saved.

    Raises:
        NotFittedError: the estimator is not fitted.
        ValueError: class labels other than strings, numbers and booleans.
    """
    check_is_fitted(estimator)
    parameters = estimator.get_params()
    parameters["hidden"] = [int(width) for width in parameters["hidden"]]
    if isinstance(parameters["random_state"], np.random.RandomState):
        parameters["random_state"] = None
    names = getattr(estimator, "feature_names_in_", None)
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "task": next(task for task, kind in KINDS.items() if isinstance(estimator, kind)),
        "parameters": parameters,
        "inputs": estimator.n_features_in_,
        "input_names": None if names is None else names.tolist(),
        "history": estimator.history_,
        "best_epoch": estimator.best_epoch_,
    }
    if isinstance(estimator, KANClassifier):
        labels = estimator.classes_
        metadata["classes"] = {"dtype": labels.dtype.str, "values": labels.tolist()}
        metadata["outputs"] = len(labels)
    else:
        assert estimator.model_.outputs is not None
        metadata["outputs"] = len(estimator.model_.outputs.shift)
        metadata["flat"] = estimator._flat
    try:
        text = to_json(metadata)
    except TypeError as error:
        raise ValueError(f"this estimator cannot be saved: {error}") from None
    tensors = {name: t.contiguous() for name, t in estimator.model_.state_dict().items()}
    write_bytes(Path(path), to_safetensors(tensors, {METADATA_KEY: text}))


def load_estimator(path: str | Path) -> KANRegressor | KANClassifier:
    """Loads a fitted estimator.

    Raises:
        UserError: the file is missing, damaged, or was not written by `save_estimator`.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise _not_ours(path, str(error)) from None
    if text is None:
        raise _not_ours(path, "it has no metadata of an estimator")
    if not all(t.dtype == torch.float64 and t.isfinite().all() for t in tensors.values()):
        raise _not_ours(path, "its tensors must be finite and in float64")
    try:
        return _rebuilt(json.loads(text), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise _not_ours(path, " ".join(str(error).split())[:200]) from None


def _rebuilt(
    metadata: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> KANRegressor | KANClassifier:
    """The estimator described by the metadata, with these weights."""
    if metadata["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {metadata['format_version']}, not {FORMAT_VERSION}")
    estimator = KINDS[metadata["task"]](**metadata["parameters"])
    inputs, outputs = metadata["inputs"], metadata["outputs"]
    # A hostile file may claim any size. Widths are compared with the tensors before layers are
    # built, the other sizes while the layers take no memory.
    for number, pair in enumerate(pairwise([inputs, *estimator.hidden, outputs])):
        if tensors[f"network.layers.{number}.base_weight"].shape != pair[::-1]:
            raise ValueError(f"the widths of layer {number} do not match its tensors")
    with torch.device("meta"):
        model = estimator.build(inputs, outputs)
    model.load_state_dict(tensors, assign=True)
    estimator.model_ = model.eval()
    estimator.n_features_in_ = inputs
    if metadata["input_names"] is not None:
        estimator.feature_names_in_ = np.array(metadata["input_names"], dtype=object)
    estimator.history_ = metadata["history"]
    estimator.best_epoch_ = metadata["best_epoch"]
    if isinstance(estimator, KANClassifier):
        dtype = np.dtype(metadata["classes"]["dtype"])
        if dtype.kind not in LABEL_KINDS or len(metadata["classes"]["values"]) != outputs:
            raise ValueError("its classes do not match its outputs")
        # a string dtype without a length, which NumPy infers from the values
        dtype_of_values = str if dtype.kind == "U" else dtype
        estimator.classes_ = np.array(metadata["classes"]["values"], dtype=dtype_of_values)
    else:
        estimator._flat = bool(metadata["flat"])
    return estimator


def _not_ours(path: str | Path, cause: str) -> UserError:
    return UserError(
        f"{path}: not a readable small KAN ({cause}); give a model.safetensors that"
        " python -m kansformer.regression or save_estimator wrote"
    )
