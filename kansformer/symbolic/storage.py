"""Networks on disk, as safetensors with JSON metadata. Nothing is ever unpickled."""

import json
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from kansformer.curve_fitting.function_library import FUNCTIONS
from kansformer.errors import UserError
from kansformer.files import to_json, write_bytes
from kansformer.symbolic.symbolic_kan import SymbolicKAN
from kansformer.symbolic.symbolic_layer import SymbolicLayer
from models.kan import BASE_ACTIVATIONS, KANLinear, activation_name

FORMAT_VERSION = 1
METADATA_KEY = "kansformer.interpret"  # part of the file format


def save(path: str | Path, model: nn.Module) -> None:
    """Writes a network with its masks, formulas and names, but without its `report`.

    Args:
        path: of the file; an existing file is replaced.
        model: a `KAN` or `SymbolicKAN`.

    Raises:
        ValueError: a base activation that is not in BASE_ACTIVATIONS.
    """
    network = SymbolicKAN.of(model)
    layers = []
    for layer in network.layers:
        activation = activation_name(layer.kan.base_activation)
        if activation is None:
            raise ValueError(f"only base activations {', '.join(BASE_ACTIVATIONS)} can be saved")
        layers.append({
            "in_features": layer.in_features, "out_features": layer.out_features,
            "products": layer.products, "grid_size": layer.kan.grid_size,
            "spline_order": layer.kan.spline_order, "base_activation": activation,
            "functions": layer.names,
        })  # fmt: skip
    metadata = {"format_version": FORMAT_VERSION, "names": network.names, "layers": layers}
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    write_bytes(Path(path), to_safetensors(tensors, {METADATA_KEY: to_json(metadata)}))


def load(path: str | Path) -> SymbolicKAN:
    """Reads a network that `save` wrote, onto the CPU.

    Raises:
        UserError: the file is missing or damaged, or was not written by `save`.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {metadata['format_version']} is unknown")
        return _rebuilt(metadata, tensors)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give one that save wrote") from None
    except (
        safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError,
        RecursionError, OverflowError, AttributeError, IndexError,
    ) as error:  # fmt: skip
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not a saved network ({cause}); give one that save wrote"
        ) from None


def _rebuilt(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> SymbolicKAN:
    _check_types(tensors)
    names = [str(name) for name in metadata["names"]]
    network = SymbolicKAN.__new__(SymbolicKAN)
    nn.Module.__init__(network)
    network.names, network.layers, network.report = names, cast(Any, nn.ModuleList()), []
    with torch.device("meta"):  # sizes must match the tensors before memory is allocated
        for number, settings in enumerate(metadata["layers"]):
            sources, targets = int(settings["in_features"]), int(settings["out_features"])
            # the table of names takes memory on any device
            if tensors[f"layers.{number}.mask"].shape != (targets, sources):
                raise ValueError(f"layer {number} has other edges than its tensors")
            kan = KANLinear(
                sources, targets,
                grid_size=int(settings["grid_size"]), spline_order=int(settings["spline_order"]),
                enable_standalone_scale_spline=False,
                base_activation=BASE_ACTIVATIONS[settings["base_activation"]],
            )  # fmt: skip
            layer = SymbolicLayer(kan, int(settings["products"]))
            layer.names = [list(row) for row in settings["functions"]]
            network.layers.append(layer)
        network.register_buffer("inputs", torch.empty_like(tensors["inputs"], device="meta"))
    network.load_state_dict(tensors, assign=True)
    for layer in network.layers:
        known = [[name is not None for name in row] for row in layer.names]
        named = {name for row in layer.names for name in row if name is not None}
        if known != layer.fixed.tolist() or not named <= FUNCTIONS.keys():
            raise ValueError("functions and tensors contradict each other")
    used = network.inputs.tolist()
    if len(used) != network.layers[0].in_features or not set(used) <= set(range(len(names))):
        raise ValueError("inputs and layers contradict each other")
    if len(set(used)) < len(used) or len(set(names)) < len(names):
        raise ValueError("an input is there twice")
    for before, after in zip(network.layers[:-1], network.layers[1:], strict=True):
        if before.nodes != after.in_features:
            raise ValueError("the layers' sizes contradict each other")
    return network


def _check_types(tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError for dtypes or values that no network has."""
    numbers = set()
    for name, tensor in tensors.items():
        kind = name.rpartition(".")[2]
        expected = {"mask": torch.bool, "fixed": torch.bool, "inputs": torch.int64}.get(kind)
        if expected is None:
            numbers.add(tensor.dtype)
        elif tensor.dtype != expected:
            raise ValueError(f"{name} is of {tensor.dtype}, not {expected}")
        if not tensor.isfinite().all():
            raise ValueError("not all of its numbers are finite")
        if kind == "grid" and (tensor.diff(dim=1) < 0).any():
            raise ValueError(f"the knots of {name} do not rise")
    if len(numbers) != 1 or not numbers <= {torch.float32, torch.float64}:
        raise ValueError("its weights are not all in float32 or all in float64")
