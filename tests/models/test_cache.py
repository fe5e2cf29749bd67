"""Caches lie in the user's cache folder; a user without one does without them."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.cache import cache_folder
from tests.conftest import ROOT, write_folder
from tests.models.test_kan_ops import needs_compiler

NOBODY = 54321  # a user ID that the system does not know
RUN = """if True:
    import sys
    from pathlib import Path
    from kansformer.data.doctor import examine
    from models import native
    assert not examine(sys.argv[1], workers=1).has_errors
    print(native.library(Path(sys.argv[2])).answer())
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
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("setpriv"):
        return False
    return subprocess.run([*as_nobody(), "true"], capture_output=True).returncode == 0


@needs_compiler
@pytest.mark.skipif(not can_be_nobody(), reason="takes root and setpriv")
@pytest.mark.parametrize(
    "places",
    [
        {},
        {"HOME": "/root"},  # as sudo may leave it: it cannot be looked into
        {"HOME": "relative", "XDG_CACHE_HOME": "relative"},
        {"XDG_CACHE_HOME": "/proc"},
        {"XDG_CACHE_HOME": "/etc/passwd"},
        {"XDG_CACHE_HOME": "/" + 300 * "x"},
    ],
    ids=["no home", "root's home", "relative", "unwritable", "a file", "a name too long"],
)
def test_an_unknown_user_works_without_caches(places: dict[str, str], tmp_path: Path) -> None:
    data, source = write_folder(tmp_path / "colours"), tmp_path / "answers.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    given = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR", "CXX")}
    done = subprocess.run(
        [*as_nobody(), sys.executable, "-c", RUN, data, source], cwd=ROOT, capture_output=True,
        text=True, env={**given, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1", **places},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "42"
