"""The weights file: one safetensors file with everything that prediction needs.

Its metadata, JSON under one key, holds the format version, the model's config, the preprocessing,
the class names in the order of the logits, the temperature by which logits are divided before the
softmax (1 if absent), and how the model was trained. Nothing in it is ever unpickled.

A delta (`kansformer.pretrained.delta`) is such a file with only some of the model's tensors. Its
metadata also hold the fingerprint of the weights from which the others come.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_safetensors

from kansformer.data import PictureData, Preprocessing
from kansformer.data.sources import SplitRule
from kansformer.errors import UserError
from kansformer.files import to_json, write_bytes
from kansformer.words import command
from models.vit_model import VisionTransformer, ViTConfig

FORMAT_VERSION = 1
METADATA_KEY = "kansformer"


@dataclass(frozen=True)
class WeightsFile:
    """The contents of a weights file.

    Attributes:
        base: of a delta, the fingerprint of the tensors that it leaves out.
    """

    tensors: dict[str, torch.Tensor]
    config: ViTConfig
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    training: dict[str, Any]
    temperature: float
    base: str | None = None


class TrainedModel(VisionTransformer):
    """A `VisionTransformer` from a weights file, with the file's other contents as attributes."""

    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    training_info: dict[str, Any]
    temperature: float

    @property
    def split(self) -> "RecordedSplit | None":
        """How its training pictures were split; None if the weights file does not record it."""
        return recorded_split(self.training_info)

    @property
    def training_settings(self) -> dict[str, Any]:
        """The training settings recorded in the weights file."""
        return settings_of(self.training_info)


@dataclass(frozen=True)
class RecordedSplit:
    """How the training pictures of a model were split.

    Attributes:
        rule: share and seed of the validation split; None if there was a validation folder.
        validation: `Pictures.fingerprint` of the validation pictures; "" in files that lack it.
    """

    rule: SplitRule | None
    validation: str = ""

    def is_of(self, data: PictureData) -> bool:
        """Whether the validation split of `data` is known to be this one."""
        assert data.val is not None
        return self.validation == data.val.fingerprint(data.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as recorded under "split" in a weights file's training information."""
        rule = None if self.rule is None else asdict(self.rule)
        return {"rule": rule, "validation": self.validation}


def settings_of(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a weights file's training information; empty if there are none."""
    settings = training.get("settings")
    return settings if isinstance(settings, dict) else {}


def recorded_split(training: Mapping[str, Any]) -> RecordedSplit | None:
    """The split in a weights file's training information; None if it is missing or invalid.

    Older files record only its share and seed, among the settings.
    """
    record = training.get("split")
    if isinstance(record, dict):
        validation, rule = str(record.get("validation", "")), record.get("rule")
        if rule is None:
            return RecordedSplit(None, validation)
        names = "share", "seed"
    else:
        validation, rule, names = "", settings_of(training), ("val_split", "seed")
    if not isinstance(rule, dict):
        return None
    share, seed = (rule.get(name) for name in names)
    if not (isinstance(share, float) and 0 < share < 1 and isinstance(seed, int)):
        return None
    return RecordedSplit(SplitRule(share, seed), validation)


def training_of(path: str | Path) -> dict[str, Any]:
    """A weights file's training information; empty if it is not a KANsformer weights file."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return dict(json.loads((file.metadata() or {})[METADATA_KEY])["training"])
    except Exception:  # `load_model` reports what is wrong with the file
        return {}


def save_model(
    path: str | Path,
    model: VisionTransformer,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    training: dict[str, Any] | None = None,
    *,
    state: Mapping[str, torch.Tensor] | None = None,
    temperature: float = 1.0,
) -> None:
    """Writes a weights file; an existing one is replaced only when the new one is complete.

    Args:
        training: plain values that describe the training.
        state: the model's full state dict, if the model's parameters are sharded.
        temperature: by which logits are divided before the softmax.

    Raises:
        ValueError: the number of class names differs from that of the model's classes.
        JobFailed: the file cannot be written.
    """
    if len(class_names) != model.config.num_classes:
        raise ValueError(f"{len(class_names)} names for {model.config.num_classes} classes")
    tensors = dict(model.state_dict() if state is None else state)
    names = tuple(class_names)
    write_weights(
        path, WeightsFile(tensors, model.config, preprocessing, names, training or {}, temperature)
    )


def write_weights(path: str | Path, file: WeightsFile) -> None:
    """Writes a weights file or a delta; an existing one is replaced only when it is complete.

    Raises:
        JobFailed: the file cannot be written.
    """
    metadata = {
        "format_version": FORMAT_VERSION,
        "config": file.config.to_dict(),
        "preprocessing": file.preprocessing.to_dict(),
        "class_names": list(file.class_names),
        "temperature": file.temperature,
        "training": file.training,
    }
    if file.base is not None:
        metadata["base"] = file.base
    tensors = {name: value.detach().cpu().contiguous() for name, value in file.tensors.items()}
    packed = to_safetensors(tensors, {"format": "pt", METADATA_KEY: to_json(metadata)})
    write_bytes(Path(path), packed)


def load_model(path: str | Path) -> TrainedModel:
    """Reads a weights file into a model on the CPU, in eval mode.

    Returns:
        The model, with `config`, `preprocessing`, `class_names`, `training_info` and
        `temperature`.

    Raises:
        UserError: the file is missing, damaged, or not a KANsformer weights file.
    """
    return model_of(read_weights(path), path)


def model_of(file: WeightsFile, path: str | Path) -> TrainedModel:
    """The model of a complete weights file that was read from `path`, as `load_model` returns it.

    Raises:
        UserError: its tensors are not those of its config.
    """
    _check_depth(file, path)
    # On "meta" no memory is allocated before the config's sizes match the tensors, since a
    # malicious file could state any size.
    try:
        with torch.device("meta"):
            model = TrainedModel(file.config)
        model.load_state_dict(file.tensors, assign=True)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise _not_ours(path, " ".join(str(error).split())[:200]) from None
    model.preprocessing = file.preprocessing
    model.class_names = file.class_names
    model.training_info = file.training
    model.temperature = file.temperature
    return model.eval()


def read_weights(path: str | Path) -> WeightsFile:
    """Reads a complete weights file and validates its metadata.

    Raises:
        UserError: the file is missing, damaged, not a KANsformer weights file, or a delta.
    """
    file = read_weights_or_delta(path)
    if file.base is not None:
        raise UserError(
            f"{path}: only the difference from pretrained weights; to get complete ones, run"
            f" {command('apply-delta')} --delta {shlex.quote(str(path))} --weights PRETRAINED"
            " --output best.safetensors"
        )
    _check_depth(file, path)
    return file


def read_weights_or_delta(path: str | Path) -> WeightsFile:
    """Reads a weights file or a delta and validates its metadata.

    Raises:
        UserError: the file is missing, damaged, or neither of them.
    """
    if Path(path).is_dir():
        raise UserError(f"{path}: a folder; give the weights file in it, such as best.safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            packed = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file; check --weights") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise _not_ours(path, str(error)) from None
    if packed is None:
        raise _not_ours(path, "it has no KANsformer metadata")
    try:
        metadata = json.loads(packed)
        version = metadata["format_version"]
        if version != FORMAT_VERSION:
            cause = f"format version {version}, this program reads version {FORMAT_VERSION}"
            raise _not_ours(path, cause)
        contents = WeightsFile(
            tensors,
            ViTConfig.from_dict(metadata["config"]),
            Preprocessing(**metadata["preprocessing"]),
            tuple(str(name) for name in metadata["class_names"]),
            dict(metadata["training"]),
            _checked_temperature(metadata.get("temperature", 1.0)),
            _checked_base(metadata.get("base")),
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise _not_ours(path, f"bad metadata: {' '.join(str(error).split())}") from None
    config, preprocessing = contents.config, contents.preprocessing
    if len(set(contents.class_names)) != config.num_classes or (
        preprocessing.img_size,
        preprocessing.in_chans,
    ) != (config.img_size, config.in_chans):
        raise _not_ours(path, "its metadata contradict each other or its tensors")
    if not all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values()):
        raise _not_ours(path, "not all of its tensors are finite numbers in float32")
    return contents


def _checked_temperature(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value > 0):
        raise ValueError(f"temperature must be a positive number, not {value!r}")
    return float(value)


def _checked_base(value: Any) -> str | None:
    if not (value is None or isinstance(value, str)):
        raise ValueError(f"base must be a fingerprint, not {value!r}")
    return value


def _check_depth(file: WeightsFile, path: str | Path) -> None:
    """Refuses more blocks than there are tensors, since even on "meta" each block takes memory."""
    if file.config.depth > len(file.tensors):
        raise _not_ours(path, f"{len(file.tensors)} tensors for {file.config.depth} blocks")


def _not_ours(path: str | Path, cause: str) -> UserError:
    return UserError(
        f"{path}: not a readable KANsformer weights file ({cause});"
        " give a best.safetensors that train.py wrote"
    )
