"""Weights in several files of one folder, as Hugging Face's libraries write large models."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

INDEX = ".index.json"
# A file name without a folder, on any system. The file itself may be a link, as in the cache of
# Hugging Face's hub.
SHARD = re.compile(r"[\w. -]{1,200}\.(safetensors|bin|pt|pth)", re.ASCII)
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_index(folder: Path) -> Path | None:
    """The index file of a folder with sharded weights, or None."""
    return next((folder / name for name in INDEX_FILES if (folder / name).is_file()), None)


def read_shards(index: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    """The tensors of all files in an index's `weight_map`, which maps tensor names to file names.

    Args:
        index: the index; it may name only files in its folder.
        read: returns the contents of one file.

    Raises:
        ValueError: an unreadable index, a file that is missing or in another folder, or a tensor
            that is not in the file that the index names, or is also in another one.
        Whatever `read` raises.
    """
    weight_map = _read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        text = f"files {missing[0]} and {len(missing) - 1} more are" if missing[1:] else ""
        raise ValueError(f"{text or f'file {missing[0]} is'} missing from its folder")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        contents = read(index.parent / shard)
        if not isinstance(contents, dict):
            raise ValueError(f"{shard} holds a {type(contents).__name__}, not a state dict")
        for name, value in contents.items():
            listed = weight_map.get(name)
            if listed is None:
                raise ValueError(f"{shard} holds {str(name)[:60]}, which the index does not list")
            if listed != shard:
                raise ValueError(f"{name[:60]} is in {shard}, but the index lists it in {listed}")
            tensors[name] = value
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ValueError(f"{name[:60]} is not in {shard}, although the index lists it there")
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, from an untrusted index."""
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ValueError("not an index of weights in JSON") from None
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("the index has no weight_map from tensors to files")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise ValueError(f"{str(shard)[:60]!r} does not name a weights file in its folder")
    return weight_map
