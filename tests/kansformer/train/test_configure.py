"""Settings and data from flags, recipes and weights; continued training keeps the split."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from kansformer.checkpoint import load_model, save_model
from kansformer.data import load_data
from kansformer.errors import UserError
from kansformer.evaluate.split import choose_split
from kansformer.export.__main__ import accuracies
from kansformer.train import train
from kansformer.train.configure import configure
from kansformer.train.distributed import Ranks
from kansformer.train.recipes import RECIPES
from tests.conftest import write_folder, write_picture
from tests.kansformer.train.runs import do


@pytest.fixture
def folder(trained: Path) -> Path:
    """The pictures that `trained` was trained on."""
    return trained.parent / "colors"


def prepared(trained: Path, data: Path, **flags: object) -> tuple[list[set[str]], str]:
    """Names of the training and validation pictures of a run from `trained`, and its messages."""
    lines: list[str] = []
    weights = str(trained / "best.safetensors")
    flags = {"data_path": str(data), "weights": weights, "device": "cpu", **flags}
    _, pictures = configure(flags, lines.append)
    assert pictures.val is not None
    splits = [{Path(p).name for p in s.items} for s in (pictures.train, pictures.val)]
    return splits, "\n".join(lines)


def trained_splits(trained: Path) -> list[set[str]]:
    """Names of the pictures that `trained` was trained and validated on."""
    data = load_data(str(trained.parent / "colors")).with_validation(0.2, 0)
    assert data.val is not None
    return [{Path(p).name for p in s.items} for s in (data.train, data.val)]


@pytest.mark.parametrize("flags", [{}, {"seed": 7}, {"recipe": "pretrained"}, {"val_split": 0.2}])
def test_the_same_pictures_stay_in_their_splits(
    trained: Path, folder: Path, tmp_path: Path, flags: dict[str, object]
) -> None:
    splits, text = prepared(trained, folder, **flags)
    assert splits == trained_splits(trained)
    assert "as in the training of" in text
    moved = shutil.copytree(folder, tmp_path / "moved and renamed")
    assert prepared(trained, moved, **flags)[0] == trained_splits(trained)


def test_another_share_warns_of_leaked_pictures(trained: Path, folder: Path) -> None:
    splits, text = prepared(trained, folder, val_split=0.5)
    leaked = len(splits[1] & trained_splits(trained)[0])
    assert leaked > 0
    assert f"{leaked} of {len(splits[1])} validation pictures were training pictures of" in text


@pytest.mark.parametrize("change", ["added", "removed", "replaced", "another folder"])
def test_other_pictures_give_a_warning(
    trained: Path, folder: Path, tmp_path: Path, change: str
) -> None:
    data = shutil.copytree(folder, tmp_path / "colors")
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
    _, text = prepared(trained, data)
    assert "was trained on colors; if its training pictures are in this validation set" in text


def test_data_with_val_give_a_warning_unless_they_are_the_same(
    trained: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    write_folder(data / "train", 4)
    write_folder(data / "val", 2, first_seed=70)
    assert "was trained on colors" in prepared(trained, data)[1]
    do(configure({"data_path": str(data), "output": str(tmp_path / "run"), "device": "cpu",
                  "epochs": 1, "report": False})[0])  # fmt: skip
    assert "was trained on" not in prepared(tmp_path / "run", data)[1]


def test_augmentation_is_that_of_the_weights(trained: Path, folder: Path) -> None:
    flags = {
        "data_path": str(folder),
        "weights": str(trained / "best.safetensors"),
        "device": "cpu",
    }
    assert configure({**flags, "recipe": "pretrained"})[0].augment == "small"  # as `trained` had it
    assert configure({**flags, "augment": "none"})[0].augment == "none"


def test_the_split_rule_passes_between_files(trained: Path, folder: Path, tmp_path: Path) -> None:
    flags = {
        "data_path": str(folder), "weights": str(trained / "best.safetensors"), "device": "cpu",
        "output": str(tmp_path / "second"), "epochs": 1, "report": False, "seed": 3,
    }  # fmt: skip
    config, data = configure(flags)
    assert config.val_split == 0.2
    train(config, data, log=lambda line: None)
    model = load_model(tmp_path / "second" / "best.safetensors")
    assert model.split == load_model(trained / "best.safetensors").split
    chosen = choose_split(load_data(str(folder)), model)
    assert {Path(path).name for path in chosen.pictures.items} == trained_splits(trained)[1]
    again, _ = prepared(tmp_path / "second", folder)
    assert again == trained_splits(trained)


def test_a_file_without_a_split_is_doubted(trained: Path, folder: Path, tmp_path: Path) -> None:
    model = load_model(trained / "best.safetensors")
    how = {key: value for key, value in model.training_info.items() if key != "split"}
    path = tmp_path / "best.safetensors"
    save_model(path, model, model.preprocessing, model.class_names, how)
    assert "was trained on colors" in prepared(tmp_path, folder)[1]
    for odd in ("x", {"rule": 3}, {"rule": {"share": "a", "seed": None}}, {"rule": {"share": 2.0}}):
        how = {"split": odd, "settings": [{"augment": ["photos"]}]}
        save_model(path, model, model.preprocessing, model.class_names, how)
        assert load_model(path).split is None
        prepared(tmp_path, folder)


def test_an_export_is_evaluated_on_the_validation_pictures(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    model = load_model(trained / "best.safetensors")

    def run(images: Tensor) -> Tensor:  # as an exported program
        with torch.no_grad():
            return model(images)

    text = accuracies(model, run, str(folder))
    assert "accuracy on 6 pictures (val)" in text
    assert "validation set drawn as in training: share 0.2, seed 0" in text
    text = accuracies(model, run, str(write_folder(tmp_path / "colors", 3)))
    assert "accuracy on 9 pictures (all)" in text
    assert "which may contain these pictures" in text


def test_the_split_is_recorded_in_the_files(trained: Path) -> None:
    split = load_model(trained / "best.safetensors").training_info["split"]
    assert split["rule"] == {"share": 0.2, "seed": 0}
    assert len(split["validation"]) == 64
    assert json.loads((trained / "config.json").read_text())["train"]["val_split"] == 0.2


def test_flags_override_the_recipe(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = configure({"data_path": str(colors)})
    assert config.recipe == "small-pictures"
    assert data.val is not None
    config, _ = configure({"data_path": "digits", "epochs": 3, "seed": 5})
    assert (config.recipe, config.epochs, config.seed) == ("digits", 3, 5)
    assert config.lr == RECIPES["digits"]()["lr"]
    config, _ = configure({"data_path": "digits", "recipe": "photos"})
    assert config.model == RECIPES["photos"]()["model"]
    flags = {"data_path": str(colors), "weights": "vit.safetensors"}
    assert configure(flags)[0].stem is None, "the recipe's stem would not fit a plain ViT"
    assert configure({**flags, "stem": "conv"})[0].stem == "conv"
    with pytest.raises(UserError, match="--recipe cooking: unknown"):
        configure({"data_path": "digits", "recipe": "cooking"})
    with pytest.raises(UserError, match="--recipe pretrained needs --weights"):
        configure({"data_path": "digits", "recipe": "pretrained"})
    large = tmp_path / "large"
    for name in ("a", "b"):
        (large / name).mkdir(parents=True)
        Image.new("RGB", (200, 100)).save(large / name / "x.png")
        Image.new("RGB", (200, 100), "red").save(large / name / "y.png")
    flags = {"data_path": str(large), "val_split": 0.5}
    assert configure(flags)[0].recipe == "photos-cpu"
    assert configure({**flags, "weights": "vit.safetensors"})[0].recipe == "pretrained"
    monkeypatch.setattr(
        "kansformer.train.configure.choose_device", lambda name: torch.device("cuda")
    )
    assert configure(flags)[0].recipe == "photos"
    # ranks have their devices: choosing again would put all of a machine on its first GPU
    assert configure(flags, ranks=Ranks(0, 1, torch.device("cpu")))[0].recipe == "photos-cpu"
    large.rename(tmp_path / "digits")  # the name alone does not choose the recipe
    config, _ = configure({"data_path": str(tmp_path / "digits"), "val_split": 0.5})
    assert config.recipe == "photos"
