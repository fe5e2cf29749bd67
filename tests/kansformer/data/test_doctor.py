"""The doctor reports every fault, prediction reports the same, and no file is changed."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kansformer.data import doctor, inspection, load_data
from kansformer.data.doctor import Report, examine
from kansformer.data.images import open_image
from kansformer.errors import UserError, run_command
from kansformer.infer import Predictor, find_pictures
from tests.conftest import ROOT, write_picture
from tests.kansformer.data.sick import make_sick, pixels
from tests.kansformer.data.test_images import saved
from tests.kansformer.data.test_originals import MNIST_FILES, idx, write_mnist
from tests.kansformer.data.test_sources import fingerprint, make_empty, make_file, make_nothing

SEVERITY = {
    "error": {"empty-class", "unknown-class", "damaged", "not-a-picture", "too-many-pixels",
              "too-many-bytes", "link-to-nowhere", "no-file", "duplicates-across-splits",
              "duplicates-with-conflicting-labels"},
    "warning": {"unread-format", "dead-link", "tiny-class", "unbalanced", "duplicates",
                "class-not-in-split", "alike-classes"},
    "note": {"system-files", "mended", "levels", "ignored", "turned",
             "deep", "cmyk", "transparent-palette", "transparent",
             "alike-files"},
}  # fmt: skip


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, set[str]]]]:
    """The folder with every fault; checks after all tests that it is unchanged."""
    folder = tmp_path_factory.mktemp("data") / "sick"
    expected = make_sick(folder)
    before = fingerprint(folder)
    yield folder, expected
    assert fingerprint(folder) == before


def named(report: Report, kind: str, folder: Path) -> set[str]:
    """The files of all findings of a kind, relative to the folder, or their class names."""
    return {
        os.path.relpath(name, folder) if os.path.isabs(name) else name
        for finding in report.findings
        if finding.kind == kind
        for name in (*finding.files, *(name for group in finding.groups for name in group))
    }


def test_every_fault_is_reported_and_nothing_else(sick: tuple[Path, dict[str, set[str]]]) -> None:
    folder, expected = sick
    report = examine(str(folder), workers=2)
    assert {kind: named(report, kind, folder) for kind in expected} == expected
    assert {finding.kind for finding in report.findings} == set(expected)
    for finding in report.findings:
        assert finding.kind in SEVERITY[finding.severity]
    assert sum(map(sum, (split.values() for split in report.counts.values()))) == len(
        find_pictures([str(folder / "train"), str(folder / "val")])
    )
    assert report.counts["train"]["größe ж"] == 4
    assert report.counts["train"]["empty"] == report.counts["train"]["new"] == 0
    assert report.orientations.keys() == set(range(1, 9))
    assert (report.modes["CMYK"], report.modes["P"], report.formats["BMP"]) == (1, 1, 4)


def test_prediction_reports_the_same_broken_pictures(
    sick: tuple[Path, dict[str, set[str]]], trained: Path
) -> None:
    folder, expected = sick
    words = {
        "damaged": "damaged (", "not-a-picture": "not a picture of a known format",
        "too-many-pixels": "has more pixels than the limit",
        "too-many-bytes": "has 357,913,941 bytes, more than the limit",
        "link-to-nowhere": "a broken link (to nowhere.png)",
        "no-file": "not a regular file",
    }  # fmt: skip
    broken = {str(folder / name): words[kind] for kind in words for name in expected[kind]}
    answers = Predictor.load(trained / "best.safetensors")(find_pictures([str(folder)]))
    assert {answer["path"] for answer in answers if "error" in answer} == set(broken)
    for path, word in broken.items():
        (answer,) = [answer for answer in answers if answer["path"] == path]
        assert answer["error"].startswith(f"{path}: {word}")
        assert answer["error"].count(";") == 1  # and a remedy


def test_training_is_refused_with_the_first_problem(sick: tuple[Path, dict[str, set[str]]]) -> None:
    with pytest.raises(UserError, match="train/empty: no pictures in this class folder"):
        load_data(str(sick[0]))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["doctor", *map(str, arguments)])
        capsys.readouterr()
        try:
            status = run_command(doctor.main)
        except SystemExit as stop:
            status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_json_is_one_object_with_all_files(
    sick: tuple[Path, dict[str, set[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, expected = sick
    status, out, _ = run(capsys, "--data-path", folder, "--json")
    assert status == 1
    findings = json.loads(out)["findings"]
    assert {finding["kind"] for finding in findings} == set(expected)
    (turned,) = [finding for finding in findings if finding["kind"] == "turned"]
    assert set(turned["files"]) == {str(folder / name) for name in expected["turned"]}


def test_the_text_report_is_limited_in_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(70):
        for i in range(6):
            write_picture(tmp_path / f"class {number:02}" / f"{i}.png", (0, 0, 0), number * 9 + i)
    for i in range(25):
        (tmp_path / "class 00" / f"bad {i:02}.png").write_text("no picture")
    status, out, err = run(capsys, "--data-path", tmp_path)
    assert (status, err.count("Traceback")) == (1, 0)
    assert "70 classes, 445 pictures" in out
    assert "and 10 classes with more pictures" in out
    assert "error: 25 pictures left out: not a picture of a known format; convert it" in out
    assert "bad 09.png" in out
    assert "bad 10.png" not in out
    assert "  and 15 more\n" in out
    assert "1 error, 0 warnings, 0 notes" in out


def test_good_data_is_status_0(colors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, pictures in ((colors, 30), ("digits", 1797)):
        status, out, _ = run(capsys, "--data-path", path, "--workers", 1, "--json")
        report = json.loads(out)
        assert status == 0
        assert report["findings"] == []
        assert sum(sum(split.values()) for split in report["counts"].values()) == pictures


@pytest.mark.parametrize("make", [make_nothing, make_file])
def test_missing_data_is_status_2(
    tmp_path: Path, make: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "--data-path", make(tmp_path))
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1


def test_wrong_flags_are_status_2(colors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 2
    assert run(capsys, "--data-path", colors, "--workers", "many")[0] == 2
    status, _, err = run(capsys, "--data-path", colors, "--workers", 0)
    assert (status, "--workers must be at least 1" in err) == (2, True)


def test_it_runs_as_a_module_and_on_an_empty_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "kansformer.data.doctor",
         "--data-path", make_empty(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "it holds no class folders" in done.stdout


def test_duplicates_equal_those_of_a_comparison_of_all_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for i in range(40):  # few distinct pictures, in several formats, modes and orientations
        picture = Image.fromarray(pixels(int(rng.integers(12)), 6))
        if rng.random() < 0.3:
            picture = picture.convert("L").convert("RGB" if i % 2 else "L")
        exif = Image.Exif()
        if rng.random() < 0.3:
            picture, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6
        part, label = ("train", "val")[i % 2], "abc"[int(rng.integers(3))]
        path = tmp_path / part / label / f"{i}{('.png', '.tif')[int(rng.integers(2))]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        saved(picture, path, exif=exif)
    report = examine(str(tmp_path))
    groups = [set(g) for f in report.findings if "duplicates" in f.kind for g in f.groups]
    files = find_pictures([str(tmp_path)])
    shown = {file: np.asarray(open_image(file).convert("RGB")) for file in files}
    pairs = 0
    for one, two in combinations(files, 2):
        together = any({one, two} <= group for group in groups)
        assert together == np.array_equal(shown[one], shown[two])
        pairs += together
    assert pairs > 20


def test_duplicates_in_memory(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path, packed=False)
    train, test = (arrays[MNIST_FILES[index]] for index in (0, 2))
    test[3], test[5], test[16] = train[1], test[4], test[6]  # labels repeat from 0 to 9
    (tmp_path / MNIST_FILES[2]).write_bytes(idx(test))
    groups = {f.kind: [tuple(group) for group in f.groups] for f in examine(str(tmp_path)).findings}
    assert groups == {
        "duplicates-across-splits": [("train[1]", "test[3]")],
        "duplicates-with-conflicting-labels": [("train[1]", "test[3]"), ("test[4]", "test[5]")],
        "duplicates": [("test[6]", "test[16]")],
    }


def test_names_that_are_the_same_on_some_systems_are_reported(tmp_path: Path) -> None:
    for number, name in enumerate(("caf\u00e9", "cafe\u0301", "Tea", "tee")):
        for i in range(6):
            write_picture(tmp_path / name / f"{number} {i}.png", (0, 0, 0), 10 * number + i)
    (finding,) = examine(str(tmp_path)).findings
    assert finding.kind == "alike-classes"
    assert set(finding.groups[0]) == {"caf\u00e9", "cafe\u0301"}


def test_a_second_run_decodes_only_changed_files(
    colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (colors / "red" / "bad.png").write_text("no picture")
    first = examine(str(colors), workers=1)
    decoded: list[str] = []

    def inspect(path: str) -> inspection.Facts:
        decoded.append(path)
        return original(path)

    original = inspection.inspect
    monkeypatch.setattr(inspection, "inspect", inspect)
    assert examine(str(colors), workers=1) == first
    assert decoded == []
    os.link(colors / "red" / "bad.png", colors / "blue" / "linked.png")
    os.symlink(colors / "red" / "red 0.png", colors / "red" / "link.png")
    examine(str(colors), workers=1)
    assert decoded == []
    os.utime(colors / "red" / "red 0.png", ns=(1, 1))
    examine(str(colors), workers=1)
    assert len(decoded) == 1


def not_a_database(file: Path) -> None:
    file.write_bytes(b"not a database, " * 500)


def a_folder(file: Path) -> None:
    file.mkdir()


def another_table(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE facts (a INTEGER)")
    database.close()


def invalid_rows(file: Path) -> None:
    """Replaces the facts in every row with invalid values."""
    with sqlite3.connect(file) as database:
        keys = [key for (key,) in database.execute("SELECT key FROM facts")]
        invalid = ["{}", "[" * 1900, "null", '["damaged"]', "9" * 1900, b"\xff\xfe", None, 7,
                   '["oops", "", "", "", "", 0, 0, 0, false, false]',
                   '["", "", "", "PNG", "RGB", 1, 1, 1, false, false]',
                   '["", "", "ab", "PNG", "RGB", "x", 1, 1, false, false]']  # fmt: skip
        rows = [(invalid[i % len(invalid)], key) for i, key in enumerate(keys)]
        database.executemany("UPDATE facts SET facts = ? WHERE key = ?", rows)
    database.close()


@pytest.mark.parametrize("corrupt", [not_a_database, a_folder, another_table, invalid_rows])
def test_a_corrupt_cache_does_no_harm(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corrupt: Callable[[Path], None]
) -> None:
    (colors / "red" / "bad.png").write_text("no picture")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = examine(str(colors), workers=1)
    file = tmp_path / "cache" / "kansformer" / "pictures.sqlite"
    if corrupt is not invalid_rows:
        file.unlink()
    corrupt(file)
    for _ in range(2):
        assert examine(str(colors), workers=1) == first


def test_a_cache_in_the_data_folder_or_without_a_folder_is_not_written(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(tmp_path)
    (tmp_path / "file").touch()
    for cache in (colors, colors / ".cache", tmp_path / "file"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        assert not examine(str(colors), workers=1).has_errors
    (tmp_path / "file").unlink()
    assert fingerprint(tmp_path) == before


def test_an_unreadable_folder_is_a_problem(colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def scan_without_permission(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("green"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_without_permission)
    with pytest.raises(UserError, match="green: this folder cannot be read"):
        load_data(str(colors))
    assert [f.kind for f in examine(str(colors), workers=1).findings] == ["unreadable-folder"]
