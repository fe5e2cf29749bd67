"""Reads any weights file into one dictionary of tensors, without running any code in it."""

import argparse
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from kansformer.errors import UserError
from kansformer.pretrained.prefixes import BESIDE, strip_prefixes
from kansformer.pretrained.shards import INDEX, find_index, read_shards

StateDict = dict[str, Tensor]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)
# keys of the state dict in trainers' checkpoints; averaged weights (EMA), usually better, first
WRAPPERS = (
    "state_dict_ema", "model_ema", "teacher",
    "model_state_dict", "state_dict", "model", "module", "net",
)  # fmt: skip

NO_TENSOR = "not a tensor"


@dataclass(frozen=True)
class RawFile:
    """The tensors of a file under the names of the module that they were saved from.

    Attributes:
        unwrapped: the dictionary keys and name prefixes that were stripped, outermost first.
        beside: names of the tensors of heads beside the ViT, which may belong to another model.
        skipped: the entries that are not used, with the reason.
        sidecar: the contents of the config.json next to the file.
    """

    path: str
    tensors: StateDict
    metadata: dict[str, str] = field(default_factory=dict)
    unwrapped: tuple[str, ...] = ()
    beside: frozenset[str] = frozenset()
    skipped: dict[str, str] = field(default_factory=dict)
    sidecar: dict[str, Any] = field(default_factory=dict)


def read_file(path: str | Path) -> RawFile:
    """Reads a file whose name ends in one of SUFFIXES, or the files that an index lists.

    Floating-point tensors of 16 or 64 bits become float32.

    Args:
        path: a file, an index such as `model.safetensors.index.json`, or the folder of an index.

    Raises:
        UserError: no such file, a damaged one, one that would run code, or one without a dictionary
            of finite tensors.
    """
    path = Path(path)
    if path.is_dir():
        index = find_index(path)
        if index is None:
            raise UserError(f"{path}: a folder; give the weights file in it")
        path = index
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check --weights")
    metadata: dict[str, str] = {}
    suffix = path.suffix.lower()
    if path.name.endswith(INDEX):
        try:
            contents = read_shards(path, _read_shard)
        except ValueError as error:
            raise error if isinstance(error, UserError) else unreadable(path, str(error)) from None
    elif suffix == ".safetensors":
        contents, metadata = _read_safetensors(path)
    elif suffix == ".npz":
        contents = _read_npz(path)
    elif suffix in TORCH_SUFFIXES:
        contents = _read_torch(path)
    else:
        raise unreadable(path, f"its name does not end in {', '.join(SUFFIXES)}")
    state, keys, skipped = unwrap(path, contents)
    try:
        stripped = strip_prefixes(state)
    except ValueError as error:
        raise unreadable(path, str(error)) from None
    tensors = {name: _as_float32(path, name, value) for name, value in stripped.tensors.items()}
    skipped |= dict.fromkeys(stripped.skipped, BESIDE)
    return RawFile(
        str(path), tensors, metadata, keys + stripped.prefixes, stripped.beside, skipped,
        _read_sidecar(path),
    )  # fmt: skip


def unreadable(path: str | Path, cause: str) -> UserError:
    """The error for a file without readable weights."""
    return UserError(
        f"{path}: not a readable file of ViT weights ({cause}); give a state dict of a ViT, such as"
        " a .safetensors file of timm or Hugging Face, or a best.safetensors that train.py wrote"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise unreadable(path, " ".join(str(error).split())[:200]) from None


def _read_shard(path: Path) -> Any:
    return _read_safetensors(path)[0] if path.suffix == ".safetensors" else _read_torch(path)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # damaged archives raise many types; no code in them has run
        raise unreadable(path, " ".join(str(error).split())[:200]) from None


def _read_torch(path: Path) -> Any:
    # Many trainers save their arguments in a Namespace, which holds plain values.
    trusted = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with trusted, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it then rejects
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise many types
        named = re.search(r"unsupported global:?(?: global)? ([\w.]+)", str(error), re.IGNORECASE)
        if named:
            raise UserError(
                f"{path}: contains code ({named[1]}), which will not be run; save only the model's"
                " state_dict(), as .safetensors"
            ) from None
        raise unreadable(path, "damaged, truncated, or not written by torch.save") from None


def unwrap(path: str | Path, contents: Any) -> tuple[StateDict, tuple[str, ...], dict[str, str]]:
    """Takes the state dict out of a trainer's checkpoint.

    Returns:
        The state dict, the keys that led to it, and the skipped entries that are not tensors, with
        that as the reason.

    Raises:
        UserError: there is no dictionary of tensors.
    """
    unwrapped = []
    while isinstance(contents, Mapping):
        key = next((k for k in WRAPPERS if isinstance(contents.get(k), Mapping)), None)
        if key is None:
            break
        unwrapped.append(key)
        contents = contents[key]
    if not isinstance(contents, Mapping):
        raise unreadable(path, f"it holds a {type(contents).__name__}, not a state dict")
    if not contents:
        raise unreadable(path, "its state dict is empty")
    tensors = {k: v for k, v in contents.items() if isinstance(k, str) and isinstance(v, Tensor)}
    odd = [str(name) for name in contents if name not in tensors]
    if not tensors or not all(isinstance(name, str) for name in contents):
        raise unreadable(path, f"entry {odd[0][:60]!r} is not a tensor")
    return tensors, tuple(unwrapped), dict.fromkeys(odd, NO_TENSOR)


def _as_float32(path: Path, name: str, value: Tensor) -> Tensor:
    """A floating-point tensor as finite float32; integers are unchanged.

    Raises:
        UserError: a tensor that is not dense, is empty, claims more data than it has, or is not
            finite.
    """
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise unreadable(path, f"{name[:60]} is sparse, quantized or without data")
    if not value.numel():
        raise unreadable(path, f"{name[:60]} is empty")
    # a tensor of strides 0 can claim any size
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise unreadable(path, f"{name[:60]} is larger than its data")
    if not value.is_floating_point():
        return value
    value = value.detach().float()
    if not value.isfinite().all():
        raise unreadable(path, f"{name[:60]} has values that are not finite")
    return value


def _read_sidecar(path: Path) -> dict[str, Any]:
    """The contents of the config.json next to a file; empty if there is none that can be read."""
    try:
        values = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
