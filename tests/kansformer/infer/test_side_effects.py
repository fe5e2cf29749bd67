"""The library changes neither the caller's model nor the process that imports it."""

import subprocess
import sys

import torch

from kansformer.checkpoint import load_model
from kansformer.infer import Predictor
from tests.conftest import ROOT

DIGITS = ROOT / "weights" / "digits.safetensors"


def test_a_predictor_does_not_change_the_callers_model() -> None:
    model = load_model(DIGITS).train()
    predictor = Predictor(model)
    assert model.training
    assert not predictor.model.training
    evaluated = load_model(DIGITS)
    assert Predictor(evaluated).model is evaluated
    meta = Predictor(evaluated, torch.device("meta"))
    assert meta.model.pos_embed.is_meta
    assert not evaluated.pos_embed.is_meta


def test_imports_do_not_change_the_process() -> None:
    code = """
import warnings, torch
torch.set_float32_matmul_precision("highest")
before = list(warnings.filters)
import numpy, scipy, sklearn, timm, torchvision, PIL.Image
theirs = list(warnings.filters)
import kansformer.train, kansformer.infer, kansformer.evaluate, kansformer.interpret, models.kan
assert warnings.filters == theirs, [f for f in warnings.filters if f not in theirs]
assert torch.get_float32_matmul_precision() == "highest"
kansformer.infer.Predictor.load("weights/digits.safetensors")
assert torch.get_float32_matmul_precision() == "highest"
assert not models.engine.memory.workspace.buffers
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
