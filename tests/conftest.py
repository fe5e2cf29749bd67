"""Shared fixtures: small folders of pictures, and a model trained on one of them."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kansformer.data import load_data
from kansformer.errors import run_command
from kansformer.train import TrainConfig, train
from models.cache import cache_folder

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # as in forked processes, whose results tests compare bit for bit
COLORS = {"blue": (30, 40, 220), "green": (30, 200, 40), "red": (220, 30, 40)}


def write_picture(path: Path, color: tuple[int, int, int], seed: int, size: int = 16) -> None:
    """Writes a noisy square of one color."""
    noise = np.random.default_rng(seed).normal(0, 25, (size, size, 3))
    pixels = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folder(folder: Path, count: int = 10, first_seed: int = 0) -> Path:
    """Writes a folder per color, each with `count` pictures."""
    for number, (name, color) in enumerate(COLORS.items()):
        for i in range(count):
            seed = first_seed + 1000 * number + i
            write_picture(folder / name / f"{name} {i}.png", color, seed)
    return folder


def tiny_settings(data: Path | str, output: Path, **changes: object) -> TrainConfig:
    """Settings for a training run of about a second."""
    settings = {
        "data_path": str(data),
        "output": str(output),
        "model": "kansformer_micro_patch8_16",
        "augment": "small",
        "epochs": 3,
        "batch_size": 8,
        "lr": 3e-3,
        "warmup_epochs": 1.0,
        "workers": 0,
        "device": "cpu",
        "report": False,
    }
    return TrainConfig(**{**settings, **changes})


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "colors")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a training run on the folder `colors`, which is beside it."""
    base = tmp_path_factory.mktemp("trained")
    folder = write_folder(base / "colors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        config = tiny_settings(folder, base / "run", epochs=5)
        train(config, load_data(str(folder)).with_validation(0.2, 0), log=lambda line: None)
    return base / "run"


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: (module, *arguments) -> (status, stdout, stderr)."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        module = import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(module, "ROOT", tmp_path, raising=False)
        capsys.readouterr()
        try:
            status = run_command(module.main)
        except SystemExit as stop:  # from argparse
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def separate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Caches facts about pictures in a temporary folder instead of the user's cache.

    KAN layers run without a compiler unless a test requests one. Compiled kernels are shared with
    the user's cache, which is safe because their names depend on everything that they depend on.
    """
    folder, users = tmp_path_factory.mktemp("cache"), cache_folder()
    (folder / "kansformer").mkdir()
    if users is not None:
        (users / "kernels").mkdir(parents=True, exist_ok=True)
        (folder / "kansformer" / "kernels").symlink_to(users / "kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("KAN_MODE", "eager")
        yield folder
