"""The built package: one top-level name, the flags of the scripts, no harm from other `models`."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kansformer
from kansformer.__main__ import COMMANDS
from tests.conftest import ROOT, write_picture

TINY = "--epochs 1 --max-steps 2 --warmup-epochs 0 --batch-size 16 --no-report --workers 0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"  # building writes into the folder that is built
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in files:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(copy)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel alone."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python in a project of the user's with `models` in it."""
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "__init__.py").write_text("raise RuntimeError('not these models')\n")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_it_has_one_name_and_all_its_files(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"kansformer"}
    for path in ROOT.glob("models/**/*"):
        if path.suffix in (".py", ".cpp", ".h"):
            assert (installed / "kansformer" / path.relative_to(ROOT)).is_file()
    assert (installed / "kansformer" / "py.typed").is_file()
    (metadata,) = installed.glob("*.dist-info/METADATA")
    text = metadata.read_text()
    assert f"Version: {kansformer.__version__}" in text
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and line[0] != "#":
            assert f"Requires-Dist: {line}" in text
    assert "Provides-Extra: web" in text


def test_it_trains_and_predicts_beside_other_models(installed: Path, tmp_path: Path) -> None:
    train = ("train", "--data-path", "digits", "--output", "out", *TINY.split())
    done = run(installed, tmp_path, "-m", "kansformer", *train)
    assert done.returncode == 0, done.stderr
    assert "next: kansformer predict PICTURE" in done.stdout
    assert not (tmp_path / "class_indices.json").exists()
    picture = tmp_path / "digit.png"
    write_picture(picture, (9, 9, 9), 0)
    weights = ("--weights", "out/best.safetensors")
    done = run(installed, tmp_path, "-m", "kansformer", "predict", picture, *weights, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)[0]["top"]) == 5
    done = run(installed, tmp_path, "-m", "kansformer", "predict", picture)
    assert done.returncode == 2
    assert "--weights" in done.stderr


def test_layers_are_compiled_there(installed: Path, tmp_path: Path) -> None:
    code = (
        "import torch; from kansformer.models.kan import KANLinear\n"
        "from kansformer.models.engine.cpp import kernels\n"
        "layer = KANLinear(64, 32, mode='compiled'); x = torch.randn(256, 64)\n"
        "y = layer(x); layer.mode = 'plain'\n"
        "assert torch.allclose(y, layer(x), atol=1e-5)\n"
        "print(kernels._library.cache_info().currsize, kernels.__file__)"
    )
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    count, path = done.stdout.split()
    assert count == "1"
    assert path.startswith(str(installed))


def test_commands_without_sense_are_one_line(installed: Path, tmp_path: Path) -> None:
    for arguments in ([], ["fly"]):
        done = run(installed, tmp_path, "-m", "kansformer", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
    done = run(installed, tmp_path, "-m", "kansformer", "--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    done = run(installed, tmp_path, "-m", "kansformer", "evaluate", "--help")
    assert done.stdout.startswith("usage: kansformer evaluate [-h]")
    done = run(installed, tmp_path, "-m", "kansformer", "--version")
    assert done.stdout.strip() == kansformer.__version__


def test_import_is_light_and_lazy() -> None:
    code = "import sys, kansformer; print('torch' in sys.modules); kansformer.KANLinear(2, 3)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_its_names_are_those_of_the_checkout() -> None:
    from kansformer.models import kan
    from models.kan import KANLinear

    assert kansformer.KANLinear is KANLinear is kan.KANLinear
    assert set(kansformer.__all__) <= set(dir(kansformer))
    for name in kansformer.__all__:
        getattr(kansformer, name)
