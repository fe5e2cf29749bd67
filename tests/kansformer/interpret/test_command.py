"""python -m kansformer.interpret, from a weights file to plots and a smaller model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kansformer.checkpoint import load_model, save_model
from kansformer.data import Preprocessing, load_data
from kansformer.train import train
from tests.conftest import COLORS, tiny_settings
from tests.kansformer.interpret.test_edges import vit

Command = Callable[..., tuple[int, str, str]]
NAME = "kansformer.interpret.__main__"


@pytest.fixture
def inside(command: Command) -> Command:
    """Runs the command: (*arguments) -> (status, stdout, stderr)."""
    import sys

    import kansformer.interpret.__main__  # noqa: F401

    def run(*arguments: object) -> tuple[int, str, str]:
        sys.modules["inside"] = sys.modules[NAME]
        return command("inside", *arguments)

    return run


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small model for the pictures in `colors`."""
    path = tmp_path / "small.safetensors"
    save_model(path, vit(kan_hidden=8), Preprocessing(8), sorted(COLORS))
    return path


def test_it_draws_and_prunes_and_the_result_can_be_trained(
    inside: Command, weights: Path, colors: Path, tmp_path: Path
) -> None:
    data = colors
    small = ("--pictures", 12, "--edges", 2, "--units", 2, "--output", tmp_path / "out")
    status, out, err = inside(
        "--weights", weights, "--data-path", data, *small, "--prune-units", 0.5,
        "--prune-edges", 0.2, "--refine", 10, "--blocks", 1, "--formulas", 0.9,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "times as fast on one thread" in out
    facts = json.loads((tmp_path / "out" / "interpretation.json").read_text())
    names = {figure["file"] for figure in facts["figures"]}
    assert {"layers.png", "attention.png", "functions-0.png", "units-1.png"} <= names
    for figure in facts["figures"]:
        assert len(figure["alt"]) > 40
        with Image.open(tmp_path / "out" / figure["file"]) as picture:
            assert min(picture.size) > 200
    steps = [step["step"] for step in facts["surgery"]]
    assert steps == ["before", "functions as formulas", "units removed",
                     "second layers refitted", "edges removed", "grids refined"]  # fmt: skip
    assert facts["surgery"][0]["accuracy"] == facts["accuracy"]

    changed = tmp_path / "out" / "changed.safetensors"
    config = load_model(changed).config
    assert config.hidden_widths == (4, 4)
    assert config.grid_sizes == (5, 10)
    settings = tiny_settings(data, tmp_path / "run", weights=str(changed), epochs=1)
    summary = train(settings, load_data(str(data)).with_validation(0.2, 0), log=lambda line: None)
    assert summary["model"]["hidden_widths"] == (4, 4)
    assert load_model(tmp_path / "run" / "best.safetensors").config == config


def test_bad_input_is_one_line(
    inside: Command, weights: Path, colors: Path, tmp_path: Path
) -> None:
    data = colors
    good = ("--weights", weights, "--data-path", data, "--output", tmp_path / "out")
    for arguments, words in (
        (("--weights", tmp_path / "no.safetensors", "--data-path", data), "no such weights file"),
        (("--weights", weights, "--data-path", "digits"), "does not know the class"),
        ((*good, "--prune-units", 1.5), "between 0 and 1"),
        ((*good, "--refine", 2), "smaller than the present"),
        ((*good, "--blocks", 0), "add --refine"),
        ((*good, "--pictures", 0), "at least 1"),
    ):
        status, out, err = inside(*arguments)
        assert (status, out) == (2, ""), words
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
