"""train.py, predict.py and split_data.py: output, exit status, and one line for each bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, write_folder, write_picture
from tests.kansformer.data.test_images import broken_files
from tests.kansformer.data.test_sources import (
    make_empty,
    make_empty_class,
    make_loose_pictures,
    make_nothing,
    make_unknown_val_class,
)  # fmt: skip
from tests.kansformer.pretrained.test_read import Evil

Command = Callable[..., tuple[int, str, str]]
TINY = ("--model", "kansformer_micro_patch8_16", "--augment", "small", "--batch-size", 8,
        "--epochs", 1, "--workers", 0, "--device", "cpu", "--no-report")  # fmt: skip


def one_line(text: str) -> str:
    """The only line of an output, after removing what progress bars overwrote."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.strip().split("\n")]
    lines = [line for line in lines if line.strip()]
    assert len(lines) == 1, text
    return lines[0]


def test_train_then_predict(command: Command, colors: Path, tmp_path: Path) -> None:
    status, out, err = command("train", "--data-path", colors, "--output", "run", *TINY)
    assert status == 0
    assert "next: python predict.py PICTURE --weights run/best.safetensors" in out
    assert "Traceback" not in err
    picture = colors / "red" / "red 1.png"
    weights = tmp_path / "run" / "best.safetensors"
    status, out, _ = command("predict", picture, "--weights", weights, "--topk", 2)
    assert status == 0
    assert out.splitlines()[0] == str(picture)
    assert len(out.splitlines()) == 3
    assert all(line.count("%") == 1 for line in out.splitlines()[1:])


def test_the_default_output_folder_is_in_weights(
    command: Command, colors: Path, tmp_path: Path
) -> None:
    assert command("train", "--data-path", colors, *TINY)[0] == 0
    folder = tmp_path / "weights" / "colors-kansformer_micro_patch8_16"
    assert (folder / "best.safetensors").is_file()
    assert (tmp_path / "class_indices.json").is_file()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_nothing, "nothing: no such folder"),
        (make_empty, "empty: it holds no class folders"),
        (make_loose_pictures, "loose: it holds pictures but no folders"),
        (make_empty_class, "yellow: no pictures"),
        (make_unknown_val_class, "yellow: a class without training pictures"),
    ],
)
def test_bad_data_gives_one_line_and_status_2(
    command: Command, tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    status, out, err = command("train", "--data-path", make(tmp_path), *TINY)
    assert (status, out) == (2, "")
    assert words in one_line(err)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["damaged", "not a picture"])
def test_a_bad_picture_is_reported_and_left_out_of_training(
    command: Command, colors: Path, tmp_path: Path, kind: str, workers: int
) -> None:
    bad = broken_files(tmp_path)[kind]
    bad = bad.rename(colors / "red" / bad.name)
    arguments = ("--data-path", colors, "--output", "run", *TINY, "--workers", workers)
    status, out, err = command("train", *arguments)
    assert status == 0
    assert str(bad) in out
    assert kind in out
    assert "Traceback" not in err


def test_bad_weights_give_one_line_and_status_2(
    command: Command, colors: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "old.pth").write_bytes(b"PK\3\4 something else")
    torch.save({"model": Evil(mark)}, tmp_path / "evil.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "alien.pth")
    for weights, words in (
        ("old.pth", "not a readable file of ViT weights"),
        ("evil.pth", "which will not be run"),
        ("alien.pth", "not a ViT in a known format"),
        ("missing.pth", "no such weights file"),
        (".", "a folder"),
    ):
        for name in ("predict", "train"):
            arguments = (colors,) if name == "predict" else ("--data-path", colors, *TINY)
            status, out, err = command(name, *arguments, "--weights", weights)
            assert status == 2
            assert "epoch" not in out
            assert f"error: {weights}: " in one_line(err)
        assert words in one_line(err)
        assert not mark.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--epochs", "ten"), "invalid int value"),
        (("--ffn", "moe"), "invalid choice"),
        (("--color", "red"), "unrecognized arguments"),
    ],
)
def test_bad_flags_give_status_2(
    command: Command, colors: Path, arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = command("train", "--data-path", colors, *TINY, *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_an_invalid_kan_mode_gives_one_line_and_status_2(
    command: Command, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAN_MODE", "fast")
    status, out, err = command("train", "--data-path", colors, *TINY)
    assert (status, out) == (2, "")
    assert "KAN_MODE" in one_line(err)


def test_boolean_flags_have_both_forms(command: Command) -> None:
    status, out, _ = command("train", "--help")
    assert status == 0
    for flag in ("freeze-layers", "resume", "overwrite", "download"):
        assert f"--{flag}, --no-{flag}" in out
    for flag in ("data-path", "output", "model", "weights", "ffn", "head", "epochs", "batch-size",
                 "lr", "lrf", "seed", "device", "recipe", "val-split"):  # fmt: skip
        assert f"--{flag}" in out


def test_predict_json_is_one_array_in_order(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    folder = trained.parent / "colors"
    bad = broken_files(tmp_path)
    inputs = [folder / "red", bad["damaged"], folder / "blue", bad["not a picture"],
              tmp_path / "missing.png"]  # fmt: skip
    status, out, err = command(
        "predict", *inputs, "--weights", trained / "best.safetensors", "--json", "--topk", 1
    )
    assert status == 0
    rows = json.loads(out)
    assert [row["path"] for row in rows[:10]] == sorted(map(str, (folder / "red").iterdir()))
    assert [row["path"] for row in rows[11:21]] == sorted(map(str, (folder / "blue").iterdir()))
    assert [i for i, row in enumerate(rows) if "error" in row] == [10, 21, 22]
    for row in rows:
        if "top" in row:
            assert row.keys() == {"path", "top"}
            assert [top.keys() for top in row["top"]] == [{"class", "index", "probability"}]
        else:
            assert row.keys() == {"path", "error"}
    assert len(err.strip().splitlines()) == 3


def test_file_names_are_printed_in_any_encoding(trained: Path, tmp_path: Path) -> None:
    picture = tmp_path / "Ж ü.png"
    write_picture(picture, (250, 0, 0), 1)
    weights = trained / "best.safetensors"
    for options in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, ROOT / "predict.py", picture, "--weights", weights, *options],
            env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True, check=True,
        )  # fmt: skip
        if options:
            assert json.loads(done.stdout)[0]["path"] == str(picture)


def test_a_full_disk_gives_one_line_and_status_1(
    command: Command, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    status, _, err = command("train", "--data-path", colors, "--output", "run", *TINY)
    assert status == 1
    assert "No space left on device" in err
    assert "Traceback" not in err


def test_predict_without_any_readable_picture_gives_status_2(
    command: Command, trained: Path
) -> None:
    weights = trained / "best.safetensors"
    status, out, err = command("predict", "missing.png", "--weights", weights, "--json")
    assert status == 2
    assert "missing.png: no such file" in one_line(err)
    assert json.loads(out)[0]["path"] == "missing.png"
    status, _, err = command("predict", "x.png", "--weights", weights, "--topk", 0)
    assert (status, "--topk" in one_line(err)) == (2, True)


def test_split_then_train(command: Command, colors: Path, tmp_path: Path) -> None:
    arguments = ("--data-path", colors, "--output", "split", "--ratios", 0.6, 0.2, 0.2)
    status, out, _ = command("split_data", *arguments, "--group-regex", r"(\d)\.png")
    assert status == 0
    assert "30 pictures in 10 groups" in out
    assert "next: python train.py --data-path split" in out
    status, out, _ = command("train", "--data-path", "split", *TINY)
    assert status == 0
    assert "test accuracy" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ratios", "1"), "--ratios"),
        (("--ratios", "1", "-1"), "--ratios"),
        (("--group-regex", "("), "not a regular expression"),
        (("--data-path", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_split_refuses(
    command: Command, colors: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = command("split_data", "--data-path", colors, "--output", "out", *arguments)
    assert (status, out) == (2, "")
    assert words in one_line(err)
    assert not (tmp_path / "out").exists()


def test_the_digit_of_the_readme_from_another_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", ROOT / "examples" / "digit.png", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (answer,) = json.loads(done.stdout)
    assert answer["top"][0]["class"] == "8"
    assert answer["top"][0]["probability"] > 0.5


def test_ctrl_c_gives_status_130(
    command: Command, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kansformer.train.loop.compute_gradient", interrupted)
    status, _, err = command("train", "--data-path", colors, "--output", "run", *TINY)
    assert status == 130
    assert "Traceback" not in err


def test_links_in_a_split_folder_are_read(command: Command, tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 6)
    write_picture(tmp_path / "in" / "red" / "größe Ж.png", (250, 0, 0), 9)
    arguments = ("--data-path", "in", "--output", "out", "--symlink", "--ratios", 0.6, 0.4)
    assert command("split_data", *arguments)[0] == 0
    assert command("train", "--data-path", "out", *TINY)[0] == 0
