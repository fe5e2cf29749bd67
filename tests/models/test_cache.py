"""Caches lie in the user's cache folder; a user without one does without them."""

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.cache import cache_folder
from tests.conftest import ROOT, write_folder
from tests.models.engine.test_operators import needs_compiler

NOBODY = 54321  # a user ID that the system does not know
PLACES: dict[str, dict[str, str]] = {
    "no home": {},
    "root's home, as sudo may leave it": {"HOME": "/root"},
    "relative": {"HOME": "relative", "XDG_CACHE_HOME": "relative"},
    "unwritable": {"XDG_CACHE_HOME": "/proc"},
    "a file": {"XDG_CACHE_HOME": "/etc/passwd"},
    "a name too long": {"XDG_CACHE_HOME": "/" + 300 * "x"},
}
RUN = """if True:
    import json, os, sys
    from pathlib import Path
    from kansformer.data.doctor import examine
    from models.engine.cpp import build
    data, source, places = sys.argv[1:]
    for name, values in json.loads(places).items():
        for variable in ("HOME", "XDG_CACHE_HOME"):
            os.environ.pop(variable, None)
        os.environ.update(values)
        assert not examine(data, workers=1).has_errors, name
        assert build.library(Path(source)).answer() == 42, name
"""


def no_such_user(_: int) -> pwd.struct_passwd:
    raise KeyError("getpwuid(): uid not found")


@pytest.mark.parametrize(
    ("xdg", "home", "expected"),
    [
        ("/a", "/home/b", "/a/kansformer"),
        ("/a", None, "/a/kansformer"),
        (None, "/home/b", "/home/b/.cache/kansformer"),
        ("", "/home/b", "/home/b/.cache/kansformer"),
        ("relative", "/home/b", "/home/b/.cache/kansformer"),
        (None, None, None),
        ("relative", None, None),
        (None, "relative", None),
    ],
)
def test_the_folder_is_that_of_the_xdg_specification(
    xdg: str | None, home: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pwd, "getpwuid", no_such_user)
    for name, value in (("XDG_CACHE_HOME", xdg), ("HOME", home)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cache_folder() == (None if expected is None else Path(expected))


def as_nobody() -> list[str]:
    """Starts a command as an unknown user, who may read the interpreter wherever it lies."""
    may_read = [f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")]
    return ["setpriv", f"--reuid={NOBODY}", "--clear-groups", *may_read]


def can_be_nobody() -> bool:
    """Whether another user can be had, and torch needs no name of that user, as 2.10 does."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("setpriv"):
        return False
    torch = [sys.executable, "-c", "import torch._dynamo"]
    given = {"PATH": os.environ["PATH"]}
    return subprocess.run([*as_nobody(), *torch], env=given, capture_output=True).returncode == 0


def run_as_nobody(
    folder: Path, places: dict[str, str], *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Runs Python in a folder, with few variables in the environment."""
    given = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR", "CXX")}
    return subprocess.run(
        [*as_nobody(), sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
        env={**given, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **places},
    )  # fmt: skip


needs_nobody = pytest.mark.skipif(
    not can_be_nobody(), reason="takes root, setpriv and a torch that needs no user's name"
)


@needs_compiler
@needs_nobody
def test_an_unknown_user_works_without_caches(tmp_path: Path) -> None:
    data, source = write_folder(tmp_path / "colors"), tmp_path / "answers.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    done = run_as_nobody(ROOT, {}, "-c", RUN, data, source, json.dumps(PLACES))
    assert done.returncode == 0, done.stderr


@needs_nobody
def test_an_unknown_user_without_a_home_trains(tmp_path: Path) -> None:
    data, checkout = write_folder(tmp_path / "colors"), tmp_path / "checkout"
    checkout.mkdir()
    for name in ("models", "kansformer"):
        shutil.copytree(ROOT / name, checkout / name)
    shutil.copy(ROOT / "train.py", checkout)  # it writes class_indices.json beside itself
    for path in (tmp_path, checkout):
        os.chown(path, NOBODY, -1)
    options = ["--model", "kansformer_micro_patch8_16", "--epochs=1", "--device=cpu", "--no-report"]
    done = run_as_nobody(
        checkout, {"KAN_MODE": "eager"}, "train.py", "--data-path", data, "--output",
        tmp_path / "run", *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best.safetensors").is_file()
