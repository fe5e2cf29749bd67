"""Exports a model to a file that runs without this project: ONNX, or torch.export's pt2."""

from kansformer.export.formats import (
    FORMATS,
    describe,
    onnx_runner,
    pt2_runner,
    quantized,
    to_onnx,
    to_pt2,
)

__all__ = [
    "FORMATS",
    "describe",
    "onnx_runner",
    "pt2_runner",
    "quantized",
    "to_onnx",
    "to_pt2",
]
