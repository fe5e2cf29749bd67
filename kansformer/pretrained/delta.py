"""The difference between a fine-tuned model and the weights that it started from.

    python -m kansformer.pretrained.delta --delta FILE --weights BASE --output best.safetensors

`train.py --save-delta` writes a delta: a weights file with only those tensors that are not the
base's, where the base is the file given to --weights. The command adds the others again. They are
checked by their fingerprint, so the base may be renamed, or saved in another format with the same
values. Position and patch embeddings that were only resized are left out too, and resized again.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kansformer.checkpoint import (
    TrainedModel,
    WeightsFile,
    model_of,
    read_weights,
    read_weights_or_delta,
    write_weights,
)
from kansformer.errors import UserError, run_command
from kansformer.pretrained.conversion import StateDict
from kansformer.pretrained.load import fit_source, read_source
from kansformer.words import command, number


def main() -> None:
    """Writes the complete weights file that a delta and its base make."""
    parser = argparse.ArgumentParser(
        prog=command("apply-delta"),
        description="Writes the complete weights file that a delta and its base make.",
    )
    parser.add_argument("--delta", required=True, metavar="FILE", help="written by --save-delta")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="the pretrained weights that it belongs to"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write")
    args = parser.parse_args()
    output = Path(args.output)
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"{output}: not a file in an existing folder; choose another --output")
    file = completed(args.delta, args.weights)
    write_weights(output, file)
    print(f"written: {output}, {number(len(file.tensors), 'tensor')}")


def save_delta(path: str | Path, weights: str | Path, base: str | Path) -> WeightsFile:
    """Writes the difference between a weights file and the file that it was trained from.

    Args:
        path: the file to write.
        weights: a complete weights file, such as best.safetensors.
        base: the pretrained weights, in any format that `load_pretrained` reads.

    Returns:
        The contents of the delta.

    Raises:
        UserError: one of the files cannot be read, or the base cannot become such a model.
        JobFailed: the delta cannot be written.
    """
    file = read_weights(weights)
    state, original = base_tensors(base, file)
    same = {name for name, tensor in file.tensors.items() if equal_bits(tensor, state.get(name))}
    delta = replace(
        file,
        tensors={name: tensor for name, tensor in file.tensors.items() if name not in same},
        base=fingerprint({name: original[name] for name in same}),
    )
    write_weights(path, delta)
    return delta


def load_delta(delta: str | Path, base: str | Path) -> TrainedModel:
    """The model that a delta and its base make, bit for bit the one that was saved as the delta.

    Where an embedding was resized, its last bits are those of this machine's interpolation.

    Returns:
        What `load_model` returns for a complete weights file.

    Raises:
        UserError: one of the files cannot be read, `delta` is no delta, or it belongs to another
            base.
    """
    return model_of(completed(delta, base), delta)


def completed(delta: str | Path, base: str | Path) -> WeightsFile:
    """The complete weights file that a delta and its base make; errors as for `load_delta`."""
    file = read_weights_or_delta(delta)
    if file.base is None:
        raise UserError(f"{delta}: a complete weights file, to be used as it is, not a delta")
    state, original = base_tensors(base, file)
    left_out = state.keys() - file.tensors.keys()
    if fingerprint({name: original[name] for name in left_out}) != file.base:
        raise UserError(
            f"{base}: not the weights from which {delta} is the difference; give --weights the file"
            " that the training started from"
        )
    tensors = {**{name: state[name].contiguous() for name in left_out}, **file.tensors}
    whole = replace(file, tensors=tensors, base=None)
    model_of(whole, delta)  # refuses tensors that are not the config's
    return whole


def base_tensors(base: str | Path, file: WeightsFile) -> tuple[StateDict, StateDict]:
    """The tensors with which a base fills the model of a weights file, and those as in the base.

    The two differ in the embeddings that are resized.

    Raises:
        UserError: the base cannot be read, or cannot become such a model.
    """
    requested = file.config.to_dict()
    source = read_source(base, requested)
    try:
        fitted = fit_source(source, requested, file.class_names)
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{base}: cannot become the model of the difference ({error}); give --weights the file"
            " that the training started from"
        ) from None
    before = {name: source.conversion.state[name] for name in fitted.resized}
    return fitted.state, {**fitted.state, **before}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def equal_bits(a: Tensor, b: Tensor | None) -> bool:
    """Whether two tensors in float32 hold the same bits: zeros of both signs differ."""
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(tensor.contiguous().view(torch.int32) for tensor in (a, b)))


if __name__ == "__main__":
    sys.exit(run_command(main))
