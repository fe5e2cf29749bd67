"""What lies in a folder of pictures beside the pictures: passed over, named, never a class."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kansformer.data import images, load_data
from kansformer.data.doctor import examine
from kansformer.data.listing import SYSTEM_NAMES
from kansformer.data.usable import concerns, usable
from kansformer.errors import UserError
from kansformer.infer import find_pictures
from kansformer.train.configure import configure
from tests.conftest import write_folder, write_picture

Command = Callable[..., tuple[int, str, str]]
GREY = (90, 90, 90)
by_bytes = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="file names are Unicode on this system"
)


def thumbnails(folder: Path) -> None:
    """What network drives and operating systems leave beside pictures."""
    for place in (
        "red/@eaDir/red 1.png/SYNOPHOTO_THUMB_S.png", "@eaDir/red/a.png", "#recycle/red/old.png",
        "blue/@__thumb/s100.png", "__MACOSX/red/red 1.png", "$RECYCLE.BIN/S-1/x.png",
        "System Volume Information/y.png",
    ):  # fmt: skip
        write_picture(folder / place, GREY, 0)
    (folder / "red" / "Thumbs.db").touch()
    (folder / "desktop.ini").touch()


@pytest.mark.parametrize("splits", [(), ("train", "val")])
def test_system_folders_are_no_pictures_and_no_classes(
    tmp_path: Path, splits: tuple[str, ...]
) -> None:
    places = [tmp_path / split for split in splits] or [tmp_path]
    for place in places:
        write_folder(place, 3)
    before = load_data(str(tmp_path))
    for place in {*places, tmp_path}:
        (place / "red").mkdir(exist_ok=True)
    for place in places:
        thumbnails(place)
    if splits:
        (tmp_path / "red").rmdir()
        write_picture(tmp_path / "@eaDir" / "train" / "x.png", GREY, 0)
    after = load_data(str(tmp_path))
    assert after.class_names == before.class_names
    assert after.train.items == before.train.items
    assert find_pictures([str(places[0])]) == before.train.items
    (finding,) = after.findings
    assert finding.kind == "system-files"
    (found,) = [f for f in examine(str(tmp_path)).findings if f.kind == "system-files"]
    names = {Path(path).name.lower() for path in found.files}
    assert names <= SYSTEM_NAMES
    assert {"@eadir", "__macosx", "#recycle", "thumbs.db"} <= names


def test_a_class_may_have_an_odd_name(tmp_path: Path) -> None:
    for name in ("@home", "#1", "$5", "_x", "~y"):
        write_picture(tmp_path / name / "1.png", GREY, 0)
    assert load_data(str(tmp_path)).class_names == ("#1", "$5", "@home", "_x", "~y")


def test_pictures_in_formats_that_are_not_read_are_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", 12)
    for i in range(40):
        (tmp_path / "data" / "red" / f"IMG_{i}.CR2").write_bytes(b"II*\0")
    (tmp_path / "data" / "red" / "drawing.psd").touch()
    said: list[str] = []
    configure({"data_path": str(tmp_path / "data"), "device": "cpu"}, said.append)
    (line,) = [line for line in said if "not read" in line]
    assert "41 pictures in formats that are not read (.cr2 40, .psd 1)" in line
    assert "python -m kansformer.data.doctor --data-path" in line
    assert "\n" not in line
    (finding,) = [f for f in examine(str(tmp_path / "data")).findings if f.kind == "unread-format"]
    assert len(finding.files) == 41
    assert "convert them" in finding.remedy


@pytest.mark.skipif(images.READS_HEIF, reason="pillow-heif is installed")
def test_for_heic_there_is_a_package(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", 12)
    (tmp_path / "data" / "red" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (finding,) = [f for f in examine(str(tmp_path / "data")).findings if f.kind == "unread-format"]
    assert "pip install pillow-heif" in finding.remedy
    for path in (tmp_path / "data" / "red").glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"\(it has IMG_1.HEIC\); pip install pillow-heif"):
        load_data(str(tmp_path / "data"))


@pytest.mark.skipif(not images.READS_AVIF, reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_reads_it(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 120, np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.avif")
    data = load_data(str(tmp_path))
    assert len(data.train) == 2
    assert np.abs(np.asarray(data.train.open(0)).astype(int) - pixels).max() < 4


@by_bytes
def test_a_class_name_that_is_no_utf8_is_refused_before_anything_is_written(
    tmp_path: Path, command: Command
) -> None:
    write_folder(tmp_path / "data", 3)
    odd = os.fsencode(tmp_path / "data") + b"/caf\xe9"
    os.mkdir(odd)
    (tmp_path / "data" / "red" / "red 0.png").rename(os.fsdecode(odd + b"/1.png"))
    for name, output in (("train", "run"), ("split_data", "split")):
        status, _, err = command(name, "--data-path", tmp_path / "data", "--output", output)
        assert status == 2
        assert "is not valid UTF-8" in err
        assert "rename the folder" in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / output).exists()
    assert "bad-name" in {f.kind for f in examine(str(tmp_path / "data")).findings}


@by_bytes
def test_file_names_that_are_no_utf8_do_no_harm(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / os.fsdecode(b"pictures \xe9")
    write_folder(folder, 6)
    for name in ("red", "blue"):
        (folder / name / f"{name} 0.png").rename(folder / name / os.fsdecode(b"\xff.png"))
    (folder / "blue" / os.fsdecode(b"bad \xff.png")).write_text("no picture")
    run = tmp_path / "run"
    small = ("--model", "kansformer_micro_patch8_16", "--epochs", 1, "--device", "cpu",
             "--workers", 0)  # fmt: skip
    weights = ("--weights", run / "best.safetensors")
    calls = (
        (0, "train", "--data-path", folder, "--output", run, *small),
        (0, "predict", folder, *weights, "--csv", "t.csv", "--explain", "why"),
        (0, "kansformer.evaluate.__main__", *weights, "--data-path", folder, "--output", "figures"),
        (0, "split_data", "--data-path", folder, "--output", tmp_path / "split"),
        (1, "kansformer.data.doctor", "--data-path", folder),
    )
    for wanted, name, *arguments in calls:
        status, _, err = command(name, *arguments)
        assert status == wanted, (name, err)
        assert "Traceback" not in err


def test_one_folder_too_high_is_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "flowers" / "flowers", 2)
    with pytest.raises(UserError, match=r"which holds folders itself; .*flowers/flowers$"):
        load_data(str(tmp_path / "flowers"))
    write_picture(tmp_path / "one" / "cat" / "deep" / "1.png", GREY, 0)
    with pytest.raises(UserError, match="a classifier needs two"):
        load_data(str(tmp_path / "one"))


def test_the_size_of_most_pictures_decides(tmp_path: Path) -> None:
    for i in range(9):
        for name in ("a", "b"):
            write_picture(tmp_path / name / f"{i}.png", GREY, i, size=300)
    write_picture(tmp_path / "a" / "0.png", GREY, 0, size=20)  # a thumbnail comes first
    assert load_data(str(tmp_path)).picture_size == 300
    config, _ = configure({"data_path": str(tmp_path), "device": "cpu"})
    assert config.recipe == "photos-cpu"


def test_training_says_what_its_figures_suffer_from(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", 6)
    original = (data / "red" / "red 0.png").read_bytes()
    for i in range(9):  # of which some validate and others do not
        (data / "red" / f"copy {i}.png").write_bytes(original)
    (data / "blue" / "too.png").write_bytes(original)
    with Image.open(data / "green" / "green 0.png") as image:  # the same pixels, packed otherwise
        image.save(data / "blue" / "packed.bmp")
    said: list[str] = []
    configure({"data_path": str(data), "device": "cpu"}, said.append)
    for words in ("2 pictures in several classes", "in several splits"):
        (line,) = [line for line in said if words in line]
        assert line.startswith("warning: ")
        assert "python -m kansformer.data.doctor --data-path" in line
        assert "\n" not in line
    quiet: list[str] = []
    good = write_folder(tmp_path / "good", 60)
    configure({"data_path": str(good), "device": "cpu"}, quiet.append)
    assert quiet == []


def test_a_validation_set_of_one_picture_is_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 3)
    write_picture(tmp_path / "val" / "red" / "1.png", GREY, 0)
    data, _ = usable(load_data(str(tmp_path)))
    (finding,) = concerns(data, str(tmp_path))
    assert "1 validation picture: its accuracy tells little" in finding.lines()[0]
