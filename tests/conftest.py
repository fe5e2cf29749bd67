"""Fixtures: small folders of pictures, and a model trained on one of them."""

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
torch.set_num_threads(1)  # as in the processes that tests fork, whose bits are compared with these
COLOURS = {"blue": (30, 40, 220), "green": (30, 200, 40), "red": (220, 30, 40)}


def write_picture(path: Path, colour: tuple[int, int, int], seed: int, size: int = 16) -> None:
    """A noisy square of one colour."""
    noise = np.random.default_rng(seed).normal(0, 25, (size, size, 3))
    pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_folder(folder: Path, count: int = 10, first_seed: int = 0) -> Path:
    """A folder per colour, each with `count` pictures."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        for i in range(count):
            seed = first_seed + 1000 * number + i
            write_picture(folder / name / f"{name} {i}.png", colour, seed)
    return folder


def tiny_settings(data: Path | str, output: Path, **changes: object) -> TrainConfig:
    """Settings with which a run takes about a second."""
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
def colours(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "colours")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run on the colours; the pictures are in `colours` beside it."""
    base = tmp_path_factory.mktemp("trained")
    folder = write_folder(base / "colours")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        config = tiny_settings(folder, base / "run", epochs=5)
        train(config, load_data(str(folder)).with_validation(0.2, 0), log=lambda line: None)
    return base / "run"


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command's main in this process: (name, *arguments) -> (status, stdout, stderr)."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        module = import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(module, "ROOT", tmp_path, raising=False)
        capsys.readouterr()
        try:
            status = run_command(module.main)
        except SystemExit as stop:  # argparse's own errors
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what tests remember about pictures out of the user's cache.

    KAN layers run without a compiler where a test does not ask for it. Compiled kernels are named
    after all they depend on, so those of the user are good here too, and are added to.
    """
    folder, own = tmp_path_factory.mktemp("cache"), cache_folder()
    (folder / "kansformer").mkdir()
    if own is not None:
        (own / "kernels").mkdir(parents=True, exist_ok=True)
        (folder / "kansformer" / "kernels").symlink_to(own / "kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("KAN_MODE", "eager")
        yield folder
