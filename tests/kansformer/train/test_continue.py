"""Training goes on from a weights file of one's own without moving pictures between the sides."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kansformer.checkpoint import load_model, save_model
from kansformer.data import load_data
from kansformer.evaluate.split import choose_split
from kansformer.export.__main__ import accuracies
from kansformer.train.recipes import configure
from tests.conftest import write_folder, write_picture
from tests.kansformer.train.runs import do


@pytest.fixture
def folder(trained: Path) -> Path:
    """The pictures that `trained` was trained on."""
    return trained.parent / "colours"


def prepared(trained: Path, data: Path, **flags: object) -> tuple[list[set[str]], str]:
    """Training and validation pictures by name of a run from `trained`, and what is said."""
    said: list[str] = []
    weights = str(trained / "best.safetensors")
    flags = {"data_path": str(data), "weights": weights, "device": "cpu", **flags}
    _, pictures = configure(flags, said.append)
    assert pictures.val is not None
    sides = [{Path(p).name for p in side.items} for side in (pictures.train, pictures.val)]
    return sides, "\n".join(said)


def trained_sides(trained: Path) -> list[set[str]]:
    """The pictures that `trained` was trained and validated on, as it was made."""
    data = load_data(str(trained.parent / "colours")).with_validation(0.2, 0)
    assert data.val is not None
    return [{Path(p).name for p in side.items} for side in (data.train, data.val)]


@pytest.mark.parametrize("flags", [{}, {"seed": 7}, {"recipe": "pretrained"}, {"val_split": 0.2}])
def test_the_same_pictures_keep_their_sides(
    trained: Path, folder: Path, tmp_path: Path, flags: dict[str, object]
) -> None:
    sides, said = prepared(trained, folder, **flags)
    assert sides == trained_sides(trained)
    assert "as in the training of" in said
    moved = shutil.copytree(folder, tmp_path / "moved and renamed")
    assert prepared(trained, moved, **flags)[0] == trained_sides(trained)


def test_another_share_says_how_many_training_pictures_validate(
    trained: Path, folder: Path
) -> None:
    sides, said = prepared(trained, folder, val_split=0.5)
    leaked = len(sides[1] & trained_sides(trained)[0])
    assert leaked > 0
    assert f"{leaked} of {len(sides[1])} validation pictures were training pictures of" in said


@pytest.mark.parametrize("change", ["added", "removed", "replaced", "another folder"])
def test_other_pictures_are_said_to_be_others(
    trained: Path, folder: Path, tmp_path: Path, change: str
) -> None:
    data = shutil.copytree(folder, tmp_path / "colours")
    if change == "added":
        write_picture(data / "blue" / "blue 5b.png", (30, 40, 220), 77)
    elif change == "removed":
        (data / "blue" / "blue 5.png").unlink()
    elif change == "replaced":
        for path in (data / "blue").iterdir():
            write_picture(path, (30, 40, 220), 5, size=17)
    else:
        shutil.rmtree(data)
        write_folder(data, 12, first_seed=50)
    _, said = prepared(trained, data)
    assert "was trained on colours; if pictures of its training validate here" in said


def test_data_with_val_of_their_own_are_said_to_be_others_unless_they_are_the_same(
    trained: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    write_folder(data / "train", 4)
    write_folder(data / "val", 2, first_seed=70)
    assert "was trained on colours" in prepared(trained, data)[1]
    do(configure({"data_path": str(data), "output": str(tmp_path / "run"), "device": "cpu",
                  "epochs": 1, "report": False})[0])  # fmt: skip
    assert "was trained on" not in prepared(tmp_path / "run", data)[1]


def test_what_was_never_mirrored_is_not_mirrored_later(trained: Path, folder: Path) -> None:
    flags = {
        "data_path": str(folder),
        "weights": str(trained / "best.safetensors"),
        "device": "cpu",
    }
    assert configure({**flags, "recipe": "pretrained"})[0].augment == "small"  # as `trained` had it
    assert configure({**flags, "augment": "none"})[0].augment == "none"


def test_the_rule_goes_on_from_file_to_file(trained: Path, folder: Path, tmp_path: Path) -> None:
    flags = {
        "data_path": str(folder), "weights": str(trained / "best.safetensors"), "device": "cpu",
        "output": str(tmp_path / "second"), "epochs": 1, "report": False, "seed": 3,
    }  # fmt: skip
    config, data = configure(flags)
    assert config.val_split == 0.2
    from kansformer.train import train

    train(config, data, say=lambda line: None)
    model = load_model(tmp_path / "second" / "best.safetensors")
    assert model.split == load_model(trained / "best.safetensors").split
    chosen = choose_split(load_data(str(folder)), model)
    assert {Path(path).name for path in chosen.pictures.items} == trained_sides(trained)[1]
    again, _ = prepared(tmp_path / "second", folder)
    assert again == trained_sides(trained)


def test_a_file_that_does_not_tell_is_doubted(trained: Path, folder: Path, tmp_path: Path) -> None:
    model = load_model(trained / "best.safetensors")
    how = {key: value for key, value in model.training_info.items() if key != "split"}
    path = tmp_path / "best.safetensors"
    save_model(path, model, model.preprocessing, model.class_names, how)
    assert "was trained on colours" in prepared(tmp_path, folder)[1]
    for odd in ("x", {"rule": 3}, {"rule": {"share": "a", "seed": None}}, {"rule": {"share": 2.0}}):
        how = {"split": odd, "settings": [{"augment": ["photos"]}]}
        save_model(path, model, model.preprocessing, model.class_names, how)
        assert load_model(path).split is None
        prepared(tmp_path, folder)


def test_an_export_is_judged_by_the_validation_pictures(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    model = load_model(trained / "best.safetensors")

    def run(images: Tensor) -> Tensor:  # as an exported program
        with torch.no_grad():
            return model(images)

    said = accuracies(model, run, str(folder))
    assert "accuracy on 6 pictures (val)" in said
    assert "split as in training: a share of 0.2 validates" in said
    said = accuracies(model, run, str(write_folder(tmp_path / "colours", 3)))
    assert "accuracy on 9 pictures (all)" in said
    assert "these pictures may be among those" in said


def test_the_summary_of_the_files_says_it_in_json(trained: Path) -> None:
    split = load_model(trained / "best.safetensors").training_info["split"]
    assert split["rule"] == {"share": 0.2, "seed": 0}
    assert len(split["validation"]) == 64
    assert json.loads((trained / "config.json").read_text())["train"]["val_split"] == 0.2
