"""Converts a model to the bytes of a file, and these to a function that runs them.

Under torch.export, KAN layers use their definition in plain operations, so a file needs no
operators of this project. The batch size is dynamic.
"""

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from kansformer.checkpoint import TrainedModel
from kansformer.errors import UserError

FORMATS = ("onnx", "pt2")
METADATA_FILE = "kansformer.json"  # within a pt2 file
MAX_ONNX_BYTES = 2**31 - 2**24  # protobuf's limit, less the graph
Runner = Callable[[Tensor], Tensor]  # images (B, C, S, S) -> logits (B, classes), on the CPU


def describe(model: TrainedModel) -> dict[str, str]:
    """The metadata of an exported file, each value as JSON.

    Probabilities are softmax(logits / temperature), in the order of the class names.
    """
    return {
        "class_names": json.dumps(model.class_names),
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
        "temperature": json.dumps(model.temperature),
    }


def to_program(model: TrainedModel) -> ExportedProgram:
    """Exports the model, on the CPU and in eval mode, by torch.export, for any batch size."""
    config = model.config
    example = torch.zeros(2, config.in_chans, config.img_size, config.img_size)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


def to_pt2(model: TrainedModel) -> bytes:
    """A file for torch.export.load, with the metadata of `describe` in `METADATA_FILE`."""
    packed = io.BytesIO()
    metadata = json.dumps(describe(model), ensure_ascii=False)
    torch.export.save(to_program(model), packed, extra_files={METADATA_FILE: metadata})
    return packed.getvalue()


def pt2_runner(packed: bytes) -> Runner:
    """A function that runs the program of a pt2 file."""
    module = torch.export.load(io.BytesIO(packed)).module()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        return module(images)

    return run


def to_onnx(model: TrainedModel) -> bytes:
    """An ONNX model, images (batch, C, S, S) -> logits (batch, classes); metadata as `describe`.

    Raises:
        UserError: a required package is missing, or the model exceeds ONNX's limit of 2 GB.
    """
    if sum(4 * tensor.numel() for tensor in model.state_dict().values()) > MAX_ONNX_BYTES:
        raise UserError("--format onnx: the model is larger than 2 GB; use --format pt2")
    try:
        import onnx
        from onnxscript import optimizer
    except ImportError as error:
        raise _missing(error) from None
    with warnings.catch_warnings():
        # torch 2.13 warns about a deprecated class that it uses itself
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        exported = torch.onnx.export(
            to_program(model), dynamo=True, optimize=False, verbose=False,
            input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "batch"},),
        )  # fmt: skip
    assert exported is not None
    # folds everything that depends only on the weights, however large
    optimizer.optimize_ir(exported.model, input_size_limit=2**40, output_size_limit=2**40)
    proto = exported.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, proto.graph):
        del part.metadata_props[:]  # source locations, with paths of this machine
    onnx.helper.set_model_props(proto, describe(model))
    return proto.SerializeToString()


def quantized(packed: bytes) -> bytes:
    """An ONNX model with 8-bit matrices; inputs of products are quantized dynamically."""
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise _missing(error) from None
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it recommends a step that has been done
    try:
        with tempfile.TemporaryDirectory() as folder:
            path, model = Path(folder) / "int8.onnx", onnx.load_from_string(packed)
            del model.graph.value_info[:]  # onnxruntime before 1.24 infers other shapes
            quantize_dynamic(
                model, path, op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True, weight_type=QuantType.QUInt8,  # signed weights saturate on AVX2
            )  # fmt: skip
            return path.read_bytes()
    finally:
        logging.getLogger().setLevel(level)


def onnx_runner(packed: bytes) -> Runner:
    """A function that runs an ONNX file by onnxruntime, on the CPU with as many threads as torch.

    Raises:
        UserError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(error) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(packed, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.cpu().numpy()})[0])

    return run


def _missing(error: ImportError) -> UserError:
    return UserError(
        f"--format onnx: {error.name} is not installed; pip install -r requirements-export.txt"
    )
