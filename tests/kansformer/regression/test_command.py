"""python -m kansformer.regression: its files, and one line for each bad input."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_iris, make_friedman1

from kansformer.errors import run_command
from kansformer.regression import load_estimator
from kansformer.regression.__main__ import main
from kansformer.regression.table import read_table

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--hidden", 8, "--epochs", 60, "--lr", 0.05)


def write(path: Path, names: list[str], rows: Iterator | list) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    x, y = make_friedman1(100, n_features=5, random_state=0)
    rows = [[*row, 3, value] for row, value in zip(x.tolist(), y.tolist(), strict=True)]
    return write(tmp_path / "numbers.csv", ["a", "b", "c", "d", "e", "constant", "y"], rows)


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    data = load_iris()
    rows = [[*x, data.target_names[y]] for x, y in zip(data.data, data.target, strict=True)]
    return write(tmp_path / "flowers.csv", ["sl", "sw", "pl", "pw", "kind"], rows)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regression", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        try:
            status = run_command(main)
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def test_regression(run: Run, numbers: Path, tmp_path: Path) -> None:
    before = numbers.read_bytes()
    status, out, err = run(
        "--task", "regression", "--data", numbers, "--target", "y", "--output", "out", *QUICK
    )
    assert (status, err) == (0, "")
    assert numbers.read_bytes() == before
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"history.png", "predictions.png", "effects.png"}
    assert written == {"results.json", "model.safetensors", *pictures}
    for name in pictures:
        pixels = np.asarray(Image.open(tmp_path / "out" / name).convert("L"))
        assert pixels.std() > 5

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["inputs"] == ["a", "b", "c", "d", "e", "constant"]
    assert results["samples"] == {"train": 80, "test": 20}
    assert results["metrics"]["test"]["r2"] > 0.5 > results["baseline"]["r2"]
    assert results["importance"]["constant"] == 0
    assert max(results["importance"], key=results["importance"].get) in ("a", "b", "d")
    assert "rmse" in out

    table = read_table(numbers, "y", "regression")
    estimator = load_estimator(tmp_path / "out" / "model.safetensors")
    assert estimator.score(table.x, table.y) > 0.5


def test_classification(run: Run, flowers: Path, tmp_path: Path) -> None:
    arguments = ("--task", "classification", "--data", flowers, "--target", "kind", *QUICK)
    status, out, _ = run(*arguments, "--inputs", "pw", "pl")
    assert status == 0
    folder = tmp_path / "weights" / "flowers-classification"
    results = json.loads((folder / "results.json").read_text())
    assert results["inputs"] == ["pw", "pl"]
    assert results["metrics"]["test"]["accuracy"] > 0.85
    assert results["baseline"]["accuracy"] == pytest.approx(1 / 3)
    assert (folder / "confusion.png").is_file()
    answer = load_estimator(folder / "model.safetensors").predict([[0.2, 1.4]])
    assert answer.tolist() == ["setosa"]
    assert "accuracy" in out

    status, _, err = run(*arguments)
    assert status == 2
    assert "contains earlier results; replace them with --overwrite" in err
    assert run(*arguments, "--overwrite")[0] == 0
    again = json.loads((folder / "results.json").read_text())
    assert again["inputs"] == ["sl", "sw", "pl", "pw"]


GOOD = "a,b,y\n" + "1,2,3\n4,5,6\n" * 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "data.csv: no such file; check --data"),
        ("", "first line must name the columns"),
        ("a,,y\n" + "1,2,3\n" * 10, "some have no name"),
        ("a,a,y\n" + "1,2,3\n" * 10, "two are named 'a'"),
        ("a,b\n" + "1,2\n" * 10, "no column 'y'; it has a, b"),
        ("y\n" + "1\n" * 10, "columns other than the target"),
        (GOOD[:30], "4 rows; at least 10 are needed"),
        ("a,b,y\n" + "1,2,3\n" * 10, "column 'y' has the same value everywhere"),
        (GOOD + "1,2\n", "line 12: 2 cells for 3 columns"),
        (GOOD + "1,red,3\n", "line 12: 'red' in column 'b' is not a number"),
        (GOOD + "1,,3\n", "line 12: '' in column 'b' is not a number"),
        (GOOD + "1,2,inf\n", "'inf' in column 'y'"),
        (b"\xff\xfe\x00", "not a CSV file in UTF-8"),
    ],
)
def test_bad_tables_are_one_line(
    run: Run, tmp_path: Path, content: str | bytes | None, words: str
) -> None:
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = run("--task", "regression", "--data", path, "--target", "y")
    assert (status, out) == (2, "")
    assert words in err
    assert err.startswith("error: ")
    assert str(path) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "weights").exists()


def test_constant_inputs_give_no_effects_plot(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", ["a", "y"], [[1, number] for number in range(20)])
    flags = ("--task", "regression", "--data", path, "--target", "y", "--output", tmp_path / "out")
    status, out, _ = run(*flags, *QUICK)
    assert status == 0
    assert "effects.png" not in out
    assert not (tmp_path / "out" / "effects.png").exists()
    assert (tmp_path / "out" / "predictions.png").exists()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["same"] * 12, "only one class"),
        ([f"{i}" for i in range(12)], "12 different values in 12 rows"),
        (["a"] * 11 + ["b"], "class 'b' of column 'y' has only one row"),
        (["a"] * 11 + [""], "line 13: column 'y' is empty"),
    ],
)
def test_bad_classes_are_one_line(run: Run, tmp_path: Path, column: list[str], words: str) -> None:
    rows = [[number, label] for number, label in enumerate(column)]
    path = write(tmp_path / "data.csv", ["a", "y"], rows)
    status, _, err = run("--task", "classification", "--data", path, "--target", "y")
    assert status == 2
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--hidden", 2), "at least 3 for their LayerNorm"),
        (("--lr", -1), "lr must be a number of at least 0"),
        (("--epochs", 0), "max_epochs must be at least 1"),
        (("--test-share", 2), "--test-share must be between 0 and 1"),
        (("--test-share", 0.001), "choose another share"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--inputs", "a", "y"), "columns other than the target"),
        (("--inputs", "z"), "no column 'z'"),
        (("--task", "cooking"), "invalid choice"),
    ],
)
def test_bad_flags_are_rejected(run: Run, numbers: Path, flags: tuple, words: str) -> None:
    status, _, err = run("--task", "regression", "--data", numbers, "--target", "y", *flags)
    assert status == 2
    assert words in err


def test_an_output_folder_that_cannot_be_made_is_one_line(run: Run, numbers: Path) -> None:
    status, _, err = run(
        "--task", "regression", "--data", numbers, "--target", "y", "--output", numbers, *QUICK
    )
    assert status == 2
    assert "cannot be created" in err


def test_a_byte_order_mark_and_spaces_are_stripped_from_names(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("a,b", " a , b").encode())
    table = read_table(path, "y", "regression")
    assert table.input_names == ["a", "b"]
    assert table.x.shape == (10, 2)
    assert table.y.tolist() == [3.0, 6.0] * 5
