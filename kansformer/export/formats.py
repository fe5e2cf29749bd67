"""From a model to the bytes of a file, and from those to a function that runs them.

KAN layers are exported in their plain form, which they take by themselves under torch.export, so
that a file needs no operators of this project. The number of pictures in a batch is free.
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
    """What a file says of itself, each value as JSON: how to prepare pictures, and what comes out.

    Probabilities are softmax(logits / temperature), in the order of the class names.
    """
    return {
        "class_names": json.dumps(model.class_names),
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
        "temperature": json.dumps(model.temperature),
    }


def to_program(model: TrainedModel) -> ExportedProgram:
    """The model, on the CPU and in eval mode, as torch.export has it; any number of pictures."""
    config = model.config
    example = torch.zeros(2, config.in_chans, config.img_size, config.img_size)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # it tells where this project lies
    return program


def to_pt2(model: TrainedModel) -> bytes:
    """A file for torch.export.load; `describe` is in it as `METADATA_FILE`."""
    packed = io.BytesIO()
    metadata = json.dumps(describe(model), ensure_ascii=False)
    torch.export.save(to_program(model), packed, extra_files={METADATA_FILE: metadata})
    return packed.getvalue()


def pt2_runner(packed: bytes) -> Runner:
    """The program of a pt2 file."""
    module = torch.export.load(io.BytesIO(packed)).module()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        return module(images)

    return run


def to_onnx(model: TrainedModel) -> bytes:
    """An ONNX model: images (batch, C, S, S) -> logits (batch, classes); metadata as `describe`.

    Raises:
        UserError: the packages for it are missing, or the model is larger than ONNX files can be.
    """
    if sum(4 * tensor.numel() for tensor in model.state_dict().values()) > MAX_ONNX_BYTES:
        raise UserError("--format onnx: the model is larger than 2 GB; take --format pt2")
    try:
        import onnx
        from onnxscript import optimizer
    except ImportError as error:
        raise _missing(error) from None
    with warnings.catch_warnings():
        # torch 2.13 warns of its own use of it
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        made = torch.onnx.export(
            to_program(model), dynamo=True, optimize=False, verbose=False,
            input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "batch"},),
        )  # fmt: skip
    assert made is not None
    # Computes what depends on the weights alone once and for all, however large it is.
    optimizer.optimize_ir(made.model, input_size_limit=2**40, output_size_limit=2**40)
    proto = made.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, proto.graph):
        del part.metadata_props[:]  # where in the source it comes from
    onnx.helper.set_model_props(proto, describe(model))
    return proto.SerializeToString()


def quantised(packed: bytes) -> bytes:
    """An ONNX model with the matrices of its products in 8 bits; inputs are scaled as they come."""
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise _missing(error) from None
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises a step that has been done
    try:
        with tempfile.TemporaryDirectory() as folder:
            path, model = Path(folder) / "int8.onnx", onnx.load_from_string(packed)
            del model.graph.value_info[:]  # shapes, which onnxruntime before 1.24 infers otherwise
            quantize_dynamic(
                model, path, op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True, weight_type=QuantType.QUInt8,  # signed ones saturate on AVX2
            )  # fmt: skip
            return path.read_bytes()
    finally:
        logging.getLogger().setLevel(level)


def onnx_runner(packed: bytes) -> Runner:
    """The program of an ONNX file, by onnxruntime on the CPU with as many threads as torch.

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
