"""Unreadable pictures are left out and listed, the same on every run; lost classes are reported."""

import os
from pathlib import Path

import numpy as np
import pytest

from kansformer.data import inspection, load_data, usable
from kansformer.data.sources import PictureData
from kansformer.errors import UserError
from tests.conftest import write_folder
from tests.kansformer.data.test_images import broken_files


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, set[str]]:
    """A folder with broken pictures in train, val and test, and the paths of these pictures."""
    bad = set()
    for number, part in enumerate(("train", "val", "test")):
        folder = write_folder(tmp_path / "mixed" / part, 6, first_seed=100 * number)
        broken_files(folder / "red")
        os.symlink("nowhere", folder / "blue" / "gone.png")
        bad |= {str(folder / "blue" / "gone.png")}
        bad |= {str(path) for path in (folder / "red").iterdir() if "red" not in path.name}
    return tmp_path / "mixed", bad


def listed(data: PictureData) -> list[list[str]]:
    return [list(part.items) for part in (data.train, data.val, data.test) if part is not None]


def test_broken_pictures_are_left_out_and_listed(mixed: tuple[Path, set[str]]) -> None:
    folder, bad = mixed
    data = load_data(str(folder))
    left, findings = usable(data)
    assert {path for finding in findings for path in finding.files} == bad
    assert len(bad) == 18
    for before, after in zip(listed(data), listed(left), strict=True):
        assert after == [path for path in before if path not in bad]
    for part in (left.train, left.val, left.test):
        for path, label in zip(part.items, part.labels, strict=True):
            assert Path(path).parent.name == left.class_names[label]
            part.open(part.items.index(path))


def test_the_result_does_not_depend_on_the_cache(
    mixed: tuple[Path, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(str(mixed[0]))
    results = []
    for cache, at_most in (("a", 20), ("b", 20), ("b", 1000), ("b", 20)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        left, findings = usable(data, at_most=at_most)
        results.append((listed(left), [finding.to_dict() for finding in findings]))
    assert results[0] == results[1] == results[3] != results[2]


def test_files_beyond_the_limit_are_reported_as_not_checked(
    colors: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    checked: list[str] = []
    inspect = inspection.inspect
    monkeypatch.setattr(inspection, "inspect", lambda path: checked.append(path) or inspect(path))
    data, (finding,) = usable(load_data(str(colors)), at_most=9, workers=1)
    assert len(checked) == len(set(checked)) == 9
    assert {Path(path).parent.name for path in checked} == {"blue", "green", "red"}
    assert (finding.kind, finding.severity) == ("not-looked-at", "note")
    assert finding.text == "21 of 30 pictures not checked"
    assert len(data.train) == 30


def test_good_data_and_pictures_in_memory_are_unchanged(colors: Path) -> None:
    for path in (str(colors), "digits"):
        data = load_data(path)
        assert usable(data) == (data, [])


def test_a_lost_class_stops_training(colors: Path) -> None:
    for path in (colors / "green").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="colors: no picture of class green can be read") as caught:
        usable(load_data(str(colors)))
    assert "green 0.png: damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lost_validation_class_is_a_warning_and_an_empty_split_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / "val", 1, first_seed=50)
    (tmp_path / "val" / "red" / "red 0.png").write_text("no picture")
    data, findings = usable(load_data(str(tmp_path)))
    assert np.bincount(data.val.labels).tolist() == [1, 1]
    assert [(f.severity, f.kind) for f in findings] == [
        ("error", "not-a-picture"), ("warning", "unreadable-class"),
    ]  # fmt: skip
    for color in ("blue", "green"):
        (tmp_path / "val" / color / f"{color} 0.png").write_text("no picture")
    with pytest.raises(UserError, match="val: no picture of class blue can be read"):
        usable(load_data(str(tmp_path)))


def test_the_first_picture_may_be_broken(colors: Path) -> None:
    (colors / "blue" / "a.png").write_text("no picture")
    assert load_data(str(colors)).picture_size == 16
