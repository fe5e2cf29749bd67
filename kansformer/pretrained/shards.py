"""Weights in several files beside each other, as Hugging Face's libraries write large models."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

INDEX = ".index.json"
# A file name without any folder, on whatever system. The file itself may be a link, as in the cache
# of Hugging Face's hub.
SHARD = re.compile(r"[\w. -]{1,200}\.(safetensors|bin|pt|pth)", re.ASCII)
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_index(folder: Path) -> Path | None:
    """The index file of a folder with sharded weights, or None."""
    return next((folder / name for name in INDEX_FILES if (folder / name).is_file()), None)


def read_shards(index: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    """The tensors of all files that an index lists in its `weight_map`, name to file name.

    Args:
        index: names files in its own folder only.
        read: gives the contents of one of them.

    Raises:
        ValueError: no such index, a file that lies elsewhere or is missing, or a tensor that is
            not in the file that the index names, or in another one.
        What `read` raises.
    """
    places = _places(index)
    missing = sorted({shard for shard in places.values() if not (index.parent / shard).is_file()})
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ValueError(f"its file {missing[0]}{more} is missing beside it")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        contents = read(index.parent / shard)
        if not isinstance(contents, dict):
            raise ValueError(f"{shard} holds a {type(contents).__name__}, not a state dict")
        for name, value in contents.items():
            place = places.get(name)
            if place is None:
                raise ValueError(f"{shard} holds {str(name)[:60]}, which the index does not list")
            if place != shard:
                raise ValueError(f"{name[:60]} is in {shard}, but the index has it in {place}")
            tensors[name] = value
    for name, shard in places.items():
        if name not in tensors:
            raise ValueError(f"{name[:60]} is not in {shard}, where the index has it")
    return tensors


def _places(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index that may be anyone's."""
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ValueError("it is no index of weights in JSON") from None
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError("it has no weight_map of tensors to files")
    for shard in places.values():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise ValueError(f"{str(shard)[:60]!r} does not name a weights file in its folder")
    return places
