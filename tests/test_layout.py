"""The layers of the code: a file imports only from a lower floor, or from its own package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the ground up. Packages on the same floor do not import each other.
FLOORS = (
    ("models",),
    (
        "kansformer.models",
        "kansformer.errors",
        "kansformer.memory",
        "kansformer.progress",
        "kansformer.words",
    ),
    ("kansformer.files", "kansformer.device", "kansformer.signals", "kansformer.figures"),
    ("kansformer.data",),
    ("kansformer.checkpoint", "kansformer.curve_fitting"),
    ("kansformer.pretrained", "kansformer.infer", "kansformer.regression", "kansformer.symbolic"),
    ("kansformer.evaluate",),
    ("kansformer.interpret", "kansformer.export"),
    ("kansformer.report",),
    ("kansformer.train",),
    ("kansformer.compare", "kansformer.web", "kansformer.commands"),
    ("kansformer.__main__",),
)
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
FILES = sorted(p for folder in ("models", "kansformer") for p in (ROOT / folder).rglob("*.py"))


def package_of(module: str) -> str | None:
    """The package in FLOORS that a module belongs to."""
    return next((p for p in FLOOR_OF if module == p or module.startswith(p + ".")), None)


def imported(path: Path) -> set[str]:
    """Full names of all modules and objects that a file imports."""
    package = path.relative_to(ROOT).parts[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:  # only within models, whose full name differs when installed
                assert package[0] == "models", f"{path}:{node.lineno}: relative import"
                above = package[: len(package) + 1 - node.level]
                module = ".".join([*above, *filter(None, [module])])
            else:
                absolute = module.split(".")[0] == "models" and package[0] == "models"
                assert not absolute, f"{path}:{node.lineno}: absolute import within models"
            names.add(module)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module == "kansformer.__init__":  # imports lazily
        return
    package = package_of(module)
    assert package is not None, f"{module} has no floor"
    for name in imported(path) - {"kansformer", "kansformer.__version__"}:
        other = package_of(name)
        if other is None:
            assert name.split(".")[0] not in ("kansformer", "train", "predict", "tests"), name
        elif other != package:
            assert FLOOR_OF[other] < FLOOR_OF[package], f"{module} must not import {name}"


def test_only_models_import_the_engine() -> None:
    for path in FILES:
        inside = path.is_relative_to(ROOT / "models")
        assert inside or not any(name.startswith("models.engine") for name in imported(path)), path


def test_models_depend_on_torch_only() -> None:
    for path in (ROOT / "models").rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            assert top in {*sys.stdlib_module_names, "torch", "numpy", "models", "timm"}
            assert top != "timm" or name.startswith("timm.layers"), name


def test_prediction_does_not_import_heavy_packages() -> None:
    heavy = ("matplotlib", "sklearn", "scipy", "tensorboard", "gradio", "onnx", "onnxruntime")
    code = f"import sys, kansformer.infer; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
