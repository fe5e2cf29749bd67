"""Counts in messages have the correct singular or plural."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kansformer import compare
from kansformer.data.preprocessing import Preprocessing
from kansformer.data.split_folder import SplitReport
from kansformer.evaluate.plots import history_in_words
from kansformer.pretrained import load_pretrained
from kansformer.pretrained.report import Fate, LoadReport
from kansformer.words import command, duration, gigabytes, number
from tests.conftest import ROOT, tiny_settings, write_folder
from tests.kansformer.train.runs import do

# one of several things; "1 picture" and "top-1 classes" are none
WRONG = re.compile(
    r"(?<![\w.,-])1 (\w+ )?(pictures|classes|epochs|blocks|patches|groups|threads|intervals|tensors"
    r"|channels|seeds|steps|processes|micro-batches)\b"
)


@pytest.mark.parametrize(
    ("count", "what", "text"),
    [
        (1, "picture", "1 picture"),
        (2, "picture", "2 pictures"),
        (0, "class", "0 classes"),
        (1, "class", "1 class"),
        (3, "patch", "3 patches"),
        (1234, "epoch", "1,234 epochs"),
    ],
)
def test_a_count_and_its_noun(count: int, what: str, text: str) -> None:
    assert number(count, what) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (9.94, "9.9 s"), (9.97, "10 s"), (45, "45 s"), (89.9, "90 s"),
     (18 * 60 + 20, "18 min"), (89.4 * 60, "89 min"), (3 * 3600 + 20 * 60, "3 h 20 min"),
     (89.9 * 60, "1 h 30 min")],
)  # fmt: skip
def test_a_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_number_of_bytes() -> None:
    assert gigabytes(3_140_000_000) == "3.1 GB"
    assert gigabytes(24_000_000) == "0.02 GB"


def test_commands_are_those_of_the_checkout_or_of_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = "train", "predict", "split", "doctor", "evaluate"
    monkeypatch.setattr("sys.argv", ["train.py"])
    for name in names:
        script = command(name).split()[-1]
        module = ROOT / script.replace(".", "/")
        paths = ROOT / script, module / "__main__.py", module.with_suffix(".py")
        assert any(path.is_file() for path in paths), script
    monkeypatch.setattr("sys.argv", ["kansformer train"])
    assert [command(name) for name in names] == [f"kansformer {name}" for name in names]


def test_there_is_one_implementation() -> None:
    sources = [*(ROOT / "kansformer").rglob("*.py"), *ROOT.glob("*.py")]
    assert [p.name for p in sources if "def number(" in p.read_text()] == ["words.py"]


def test_messages_of_a_run_of_one_epoch(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_folder(data / "train", 2)
    write_folder(data / "val", 1, first_seed=50)
    for color in ("green", "red"):  # leaves one validation picture
        shutil.rmtree(data / "val" / color)
    lines: list[str] = []
    do(tiny_settings(data, tmp_path / "out", epochs=1, img_size=8, patience=1), lines.append)
    text = "\n".join(lines)
    assert "1 epoch on cpu" in text
    assert "1 validation picture\n" in text
    assert "1 patch of 8x8x3" in text
    assert not WRONG.search(text), text


def test_messages_with_counts_of_one() -> None:
    run = {"data": "x", "pictures": {"test": 1, "val": 1}, "epochs": 1, "device": "cpu"}
    run |= {"test_acc1": 1.0}
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_acc1": 1.0}
    split = SplitReport(("a",), np.array([[1]]), 1, 1)
    for text in (compare.as_markdown([], [run]), history_in_words([row]), str(split)):
        assert not WRONG.search(text), text
        assert re.search(r"\b1 (picture|epoch)\b", text)


def test_the_report_on_weights_counts_the_tensors_it_lists(tmp_path: Path, trained: Path) -> None:
    fates = {f"blocks.{i}.x": Fate("fresh", "kan blocks were asked for") for i in range(50)}
    report = LoadReport("a.pth", "timm ViT", {"head.bias": Fate("skipped", "other classes")},
                        {"norm.bias": Fate("loaded"), **fates},
                        {"loaded": 1, "fresh": 50}, Preprocessing(16))  # fmt: skip
    lines = str(report).splitlines()
    assert lines[0] == "a.pth: timm ViT; 1 tensor loaded, 0 converted, 0 resized, 50 fresh"
    assert lines[2] == (
        "  fresh: blocks.0.x, blocks.1.x, blocks.10.x and 47 more, 50 tensors in all"
        " (kan blocks were asked for)"
    )
    assert lines[3] == "  skipped: head.bias (other classes)"
    _, loaded = load_pretrained(str(trained / "best.safetensors"), num_classes=5)
    assert not WRONG.search(str(loaded))
