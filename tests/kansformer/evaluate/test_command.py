"""python -m kansformer.evaluate: the choice of pictures, labels by class name, and its files."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from kansformer.checkpoint import load_model
from kansformer.data import PictureData, Pictures, load_data
from kansformer.errors import UserError
from kansformer.evaluate.split import choose_split, labels_by_name
from kansformer.infer import Predictor
from tests.conftest import COLORS, write_folder, write_picture

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(command: Callable[..., tuple[int, str, str]], trained: Path) -> Evaluate:
    """(data path, *arguments) -> (status, stdout, stderr) with the model of `trained`."""

    def run(data: Path | str, *arguments: object) -> tuple[int, str, str]:
        given = () if "--weights" in arguments else ("--weights", trained / "best.safetensors")
        name = "kansformer.evaluate.__main__"
        return command(name, "--data-path", data, *given, "--device", "cpu", *arguments)

    return run


def test_predictions_equal_those_of_predict(
    evaluate: Evaluate, command: Callable[..., tuple[int, str, str]], colors: Path, trained: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    status, out, _ = evaluate(colors, "--output", "out", "--json", "--batch-size", 7)
    assert status == 0
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    status, out, _ = command(
        "predict", colors, "--weights", trained / "best.safetensors", "--json", "--topk", 1
    )
    answers = json.loads(out)
    assert (len(rows), report["pictures"], report["split"]) == (6, 6, "val")
    answers_by_path = {answer["path"]: answer for answer in answers}
    assert len(answers_by_path) == 30
    for row in rows:
        answer = answers_by_path[row["path"]]
        (best,) = answer["top"]
        assert (row["path"], row["predicted"]) == (answer["path"], best["class"])
        assert float(row["probability"]) == pytest.approx(best["probability"], abs=1e-6)
        assert row["true"] == Path(row["path"]).parent.name
    correct = np.mean([row["true"] == row["predicted"] for row in rows])
    assert report["accuracy"] == pytest.approx(correct)
    assert correct > 0.9  # labels are matched by name
    for name in ("confusion.png", "reliability.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "classes.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == sorted(COLORS)


def test_a_subset_of_the_classes_is_matched_by_name(evaluate: Evaluate, colors: Path) -> None:
    shutil.rmtree(colors / "green")  # red is the folder's second class, the model's third
    status, out, _ = evaluate(colors, "--json")
    report = json.loads(out)
    assert (status, report["pictures"]) == (0, 20)
    assert report["accuracy"] > 0.9
    assert [row["support"] for row in report["per_class"]] == [10, 0, 10]


def test_labels_are_matched_by_name_in_any_order() -> None:
    labels = np.array([0, 2, 1, 1])
    assert labels_by_name(labels, "cab", "abcd", "x").tolist() == [2, 1, 0, 0]
    with pytest.raises(UserError, match="x: the model does not know the class 'e', only a, b, c"):
        labels_by_name(labels, "cae", "abcd", "x")
    assert labels_by_name(labels[:1], "cae", "abcd", "x").tolist() == [2]  # no label is e


def test_an_unknown_class_is_named(evaluate: Evaluate, colors: Path) -> None:
    write_picture(colors / "yellow" / "1.png", (250, 250, 0), 0)
    status, out, err = evaluate(colors)
    assert (status, out) == (2, "")
    assert "does not know the class 'yellow', only blue, green, red" in err


def test_the_validation_set_is_that_of_the_training(evaluate: Evaluate, trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    pictures = {}
    for split in ("val", "train"):
        status, out, _ = evaluate(trained.parent / "colors", "--split", split, "--json")
        report = json.loads(out)
        assert (status, report["split"]) == (0, split)
        assert report["pictures"] == summary["pictures"][split]
        assert report["note"] == "validation set drawn as in training: share 0.2, seed 0"
        if split == "val":
            assert report["accuracy"] == pytest.approx(summary["val_acc1"] / 100)
            assert report["nll"] == pytest.approx(summary["val_loss"], abs=1e-5)
        pictures[split] = report["pictures"]
    assert sum(pictures.values()) == 30


def test_the_default_choice_of_pictures(trained: Path) -> None:
    model = load_model(trained / "best.safetensors")
    parts = [Pictures([f"{n}.png"] * 20, np.arange(20) % 3) for n in range(3)]
    names = tuple(sorted(COLORS))
    both = PictureData("x", names, *parts)
    assert choose_split(both, model).pictures.items == parts[2].items
    assert choose_split(both, model, "val").pictures.items == parts[1].items
    assert choose_split(both, model, "val").note == ""
    assert choose_split(PictureData("x", names, *parts[:2]), model).split == "val"
    flat = choose_split(PictureData("x", names, parts[0]), model)
    assert (flat.split, flat.pictures.items, flat.note) == ("all", parts[0].items, "")
    known = choose_split(PictureData("colors", names, parts[0]), model)
    assert "may contain these pictures" in known.note
    trained_on = load_data(str(trained.parent / "colors"))
    validating = choose_split(trained_on, model)
    assert (validating.split, len(validating.pictures)) == ("val", 6)
    assert validating.pictures.items == choose_split(trained_on, model, "val").pictures.items
    in_memory = Pictures(np.zeros((20, 8, 8, 3), np.uint8), parts[0].labels)
    other = choose_split(PictureData("x", names, in_memory), model, "val")
    assert "but the model was trained on colors" in other.note
    with pytest.raises(UserError, match="no test pictures"):
        choose_split(PictureData("x", names, parts[0]), model, "test")
    model.training_info = {}
    with pytest.raises(UserError, match="does not record how"):
        choose_split(PictureData("x", names, parts[0]), model, "val")


def test_a_broken_picture_is_reported_and_not_counted(
    evaluate: Evaluate, colors: Path, tmp_path: Path
) -> None:
    (colors / "blue" / "new.png").write_bytes((colors / "blue" / "blue 0.png").read_bytes())
    bad = colors / "green" / "green 4.png"
    bad.write_bytes(bad.read_bytes()[:100])
    status, out, err = evaluate(colors, "--json", "--output", "out")
    report = json.loads(out)
    assert status == 1
    assert [row["path"] for row in report["unreadable"]] == [str(bad)]
    assert err.startswith(f"error: {bad}: damaged")
    assert (report["split"], report["pictures"]) == ("all", 30)  # not the training run's pictures
    assert [row["support"] for row in report["per_class"]] == [11, 9, 10]
    table = (tmp_path / "out" / "predictions.csv").read_text()
    assert str(bad) not in table
    assert len(table.splitlines()) == 31


def mislabelled(folder: Path) -> Path:
    """train/, val/ and test/ of colors, with some pictures in a wrong folder."""
    for number, split in enumerate(("train", "val", "test")):
        write_folder(folder / split, 10, 100 * number)
        for i in range(3):
            write_picture(folder / split / "red" / f"wrong {i}.png", COLORS["blue"], i)
    return folder


def test_a_temperature_is_stored_and_used(
    evaluate: Evaluate, trained: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "best.safetensors"
    shutil.copy(trained / "best.safetensors", weights)
    old = safetensors.torch.load_file(weights)
    data = mislabelled(tmp_path / "mixed")
    status, out, _ = evaluate(data, "--weights", weights, "--calibrate", "--json")
    report = json.loads(out)
    assert (status, report["split"], report["pictures"]) == (0, "test", 33)
    calibrated = report["calibrated"]
    assert calibrated["pictures"] == 33
    assert calibrated["before"]["temperature"] == 1
    assert report["nll"] < calibrated["before"]["nll"]

    model = load_model(weights)
    assert model.temperature == report["temperature"] != 1
    assert model.training_info == load_model(trained / "best.safetensors").training_info
    new = safetensors.torch.load_file(weights)
    assert all((new[name] == old[name]).all() for name in old)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "mixed"]

    status, out, _ = evaluate(data, "--weights", weights, "--json", "--output", "out")
    again = json.loads(out)
    assert (again["nll"], again["ece"]) == pytest.approx((report["nll"], report["ece"]))
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    answers = Predictor.load(weights)([row["path"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        expected = answer["top"][0]["probability"]
        assert float(row["probability"]) == pytest.approx(expected, abs=1e-6)
    status, out, _ = evaluate(data, "--weights", weights, "--calibrate")  # already optimal
    assert load_model(weights).temperature == pytest.approx(model.temperature, rel=1e-3)
    assert "fitted on 33 validation pictures" in out


def test_the_file_is_unchanged_if_no_temperature_can_be_fitted(
    evaluate: Evaluate, trained: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "best.safetensors"
    shutil.copy(trained / "best.safetensors", weights)
    before = weights.read_bytes()
    data = write_folder(tmp_path / "clear", 4, 50)
    status, out, err = evaluate(data, "--weights", weights, "--calibrate")
    assert (status, out) == (1, "")
    assert "no temperature can be fitted" in err
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--weights", "missing.safetensors"), "missing.safetensors: no such weights file"),
        (("--data-path", "nowhere"), "nowhere: no such folder"),
        (("--split", "test"), "colors: has no test pictures"),
        (("--device", "abacus"), "--device abacus"),
        (("--tta", "--calibrate"), "remove --tta"),
        (("--output", "colors/out"), "colors/out: lies within"),
    ],
)
def test_wrong_use_is_one_line(
    evaluate: Evaluate, colors: Path, arguments: tuple[object, ...], words: str
) -> None:
    status, out, err = evaluate(colors, *arguments)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert not (colors / "out").exists()
