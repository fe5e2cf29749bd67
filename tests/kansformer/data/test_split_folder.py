"""split_data: no picture is lost, overwritten, or in two parts."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kansformer.data.doctor import examine
from kansformer.data.split_folder import PARTS, split_folder
from kansformer.errors import UserError
from tests.conftest import COLORS, write_picture
from tests.kansformer.data.test_sources import fingerprint

RATIOS = (0.6, 0.2, 0.2)


def contents(folder: Path) -> Counter[tuple[str, bytes]]:
    return Counter((p.parent.name, p.read_bytes()) for p in folder.rglob("*.png"))


@pytest.mark.parametrize("symlink", [False, True])
def test_every_picture_is_copied_once_into_its_class(
    colors: Path, tmp_path: Path, symlink: bool
) -> None:
    before = fingerprint(colors)
    report = split_folder(colors, tmp_path / "out", RATIOS, symlink=symlink)
    assert contents(tmp_path / "out") == contents(colors)
    assert report.counts.tolist() == [[6, 2, 2]] * 3
    assert all(p.is_symlink() == symlink for p in (tmp_path / "out").rglob("*.png"))
    names = json.loads((tmp_path / "out" / "class_indices.json").read_text())
    assert names == dict(zip("012", sorted(COLORS), strict=True))
    assert fingerprint(colors) == before
    for name in (*COLORS, *PARTS):
        assert name in str(report)


def test_seeds(colors: Path, tmp_path: Path) -> None:
    layouts = []
    for run, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(run)
        split_folder(colors, out, RATIOS, seed)
        layouts.append(sorted(str(p.relative_to(out)) for p in out.rglob("*.png")))
    assert layouts[0] == layouts[1] != layouts[2]


def test_equal_files_are_kept_in_one_part(colors: Path, tmp_path: Path) -> None:
    for name in COLORS:  # each picture three times, once in another class
        for i in range(10):
            picture = colors / name / f"{name} {i}.png"
            shutil.copy(picture, colors / name / f"copy of {i}.png")
            shutil.copy(picture, colors / "red" / f"{name} too {i}.png")
    report = split_folder(colors, tmp_path / "out", RATIOS)
    parts = [{p.read_bytes() for p in (tmp_path / "out" / part).rglob("*.png")} for part in PARTS]
    assert all(parts)
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])
    assert report.duplicates == 60


def test_equal_pixels_in_different_formats_are_kept_in_one_part(tmp_path: Path) -> None:
    for name, color in COLORS.items():
        for i in range(10):
            write_picture(tmp_path / "in" / name / f"{i}.png", color, i)
            with Image.open(tmp_path / "in" / name / f"{i}.png") as image:
                image.save(tmp_path / "in" / name / f"{i} again.png", compress_level=0)
                image.save(tmp_path / "in" / name / f"{i} too.bmp")
    report = split_folder(tmp_path / "in", tmp_path / "out", RATIOS)
    assert report.duplicates == 60
    kinds = {finding.kind for finding in examine(str(tmp_path / "out")).findings}
    assert "duplicates-across-splits" not in kinds
    assert "duplicates" in kinds


def test_a_missing_class_and_broken_pictures_are_reported(colors: Path, tmp_path: Path) -> None:
    for i in range(2, 10):
        (colors / "red" / f"red {i}.png").unlink()
    (colors / "blue" / "blue 1.png").write_text("no picture")
    report = split_folder(colors, tmp_path / "out", (0.8, 0.1, 0.1))
    lines = str(report).splitlines()
    assert "warning: test has no picture of red; add pictures or change --ratios" in lines
    assert any("1 picture cannot be read" in line for line in lines)
    assert contents(tmp_path / "out") == contents(colors)


def test_groups_are_kept_in_one_part(tmp_path: Path) -> None:
    for name in COLORS:
        for i in range(50):
            path = tmp_path / "in" / name / f"IMG_{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name}{i}".encode())
    report = split_folder(tmp_path / "in", tmp_path / "out", RATIOS, group_regex=r"IMG_(\d)\d")
    assert report.groups == 5
    tens = [{p.name[4] for p in (tmp_path / "out" / part).rglob("*.png")} for part in PARTS]
    assert sorted(map(len, tens)) == [1, 1, 3]
    assert len(set.union(*tens)) == 5


def refuse_full_target(source: Path, target: Path) -> dict[str, object]:
    target.mkdir()
    (target / "precious.txt").write_text("keep me")
    return {}


def refuse_regex(source: Path, target: Path) -> dict[str, object]:
    return {"group_regex": "("}


def refuse_unmatched(source: Path, target: Path) -> dict[str, object]:
    return {"group_regex": r"IMG_(\d+)"}


def refuse_one_group(source: Path, target: Path) -> dict[str, object]:
    return {"group_regex": "png"}


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (refuse_full_target, "nothing is overwritten"),
        (refuse_regex, "not a regular expression"),
        (refuse_unmatched, "does not match"),
        (refuse_one_group, "cannot fill"),
    ],
)
def test_refusals_write_nothing(
    colors: Path, tmp_path: Path, prepare: Callable[..., dict[str, object]], words: str
) -> None:
    target = tmp_path / "out"
    options = prepare(colors, target)
    before = fingerprint(tmp_path)
    with pytest.raises(UserError, match=words):
        split_folder(colors, target, RATIOS, **options)
    assert fingerprint(tmp_path) == before


def test_the_target_must_not_lie_in_the_source(colors: Path) -> None:
    with pytest.raises(UserError, match="lies within"):
        split_folder(colors, colors / "out", RATIOS)
    split_folder(colors, colors.parent / "once", RATIOS)
    with pytest.raises(UserError, match=r"already split into train, val, test; .*once/train"):
        split_folder(colors.parent / "once", colors.parent / "twice", RATIOS)
    with pytest.raises(UserError, match="no such folder"):
        split_folder(colors / "missing", colors.parent / "out", RATIOS)
