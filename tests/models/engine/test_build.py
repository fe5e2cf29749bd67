"""C++ kernels are compiled once for a machine and kept; without a compiler layers run eagerly."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.cache import cache_folder
from models.engine.cpp import build
from tests.conftest import ROOT
from tests.models.engine.test_operators import needs_compiler

REAL = os.environ.get("CXX") or "c++"
SOURCE = 'extern "C" int answer() { return ANSWER; }'


def kernels() -> Path:
    """The folder of compiled kernels."""
    folder = cache_folder()
    assert folder is not None
    return folder / "kernels"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ file, and an empty folder for kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "answers.cpp"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_libraries_are_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.library(source, ANSWER=42).answer() == 42
    assert build.library(source, ANSWER=43).answer() == 43
    kept = sorted(kernels().iterdir())
    assert len(kept) == 2
    monkeypatch.setattr(build, "_compile", None)
    assert build.library(source, ANSWER=42).answer() == 42
    assert sorted(kernels().iterdir()) == kept


def fake_compiler(path: Path, answer: int) -> Path:
    """A compiler of files in which ANSWER is what it says."""
    path.write_text(f'#!/bin/sh\nexec {REAL} -UANSWER "$@" -UANSWER -DANSWER={answer}\n')
    path.chmod(0o755)
    return path


@needs_compiler
def test_each_compiler_has_its_own_files(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (fake_compiler(source.with_name(f"c{n}"), n) for n in (1, 2))
    link = source.with_name("link")
    link.symlink_to(one)
    for command, answer in ((one, 1), (two, 2), (f"env {two}", 2), (link, 1)):
        monkeypatch.setenv("CXX", str(command))
        assert build.library(source, ANSWER=0).answer() == answer
    fake_compiler(two, 33)  # as an upgrade puts another one in the same place
    for command, answer in ((two, 33), (f"env {two}", 33), (f"{two} -DOTHER", 33), (one, 1)):
        monkeypatch.setenv("CXX", str(command))
        assert build.library(source, ANSWER=0).answer() == answer
    link.unlink()
    link.symlink_to(two)
    monkeypatch.setenv("CXX", str(link))
    assert build.library(source, ANSWER=0).answer() == 33


@needs_compiler
def test_without_a_compiler_the_file_of_any_will_do(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.library(source, ANSWER=42)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    assert build.library(source, ANSWER=42).answer() == 42
    with pytest.raises(OSError, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        build.library(source, ANSWER=43)


@needs_compiler
@pytest.mark.parametrize("command", ["no-such-compiler", "false", "'c++"])
def test_a_compiler_that_was_asked_for_is_used_or_missed(
    command: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.library(source, ANSWER=42)
    monkeypatch.setenv("CXX", command)
    with pytest.raises(OSError, match=re.escape(command)):
        build.library(source, ANSWER=42)


@needs_compiler
def test_a_damaged_file_is_made_again(source: Path) -> None:
    build.library(source, ANSWER=1)
    (kept,) = kernels().iterdir()
    kept.unlink()  # not written over: this process has it open
    kept.write_bytes(b"no library")
    assert build.library(source, ANSWER=1).answer() == 1


@needs_compiler
def test_the_compiler_can_be_given_with_arguments(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"env {os.environ.get('CXX') or 'c++'}")
    assert build.library(source, ANSWER=42).answer() == 42


@needs_compiler
def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source / "a file is no folder"))
    assert build.library(source, ANSWER=42).answer() == 42


@needs_compiler
def test_the_compiler_s_first_complaint_is_the_reason(source: Path) -> None:
    source.with_name("other.h").write_text("no C++")
    source.write_text('#include "other.h"')
    with pytest.raises(OSError, match=r"other\.h.*error"):
        build.library(source)
    assert not list(kernels().iterdir())


def test_without_a_compiler_it_falls_back_with_one_warning(tmp_path: Path) -> None:
    code = """if True:
        import torch
        from models.kan import GroupKANLinear
        layers = [GroupKANLinear(16, 16, mode="compiled") for _ in range(2)]
        for layer in layers:
            torch.nn.init.normal_(layer.spline_weight)
        x = torch.randn(20, 16)
        y = layers[1](layers[0](x))
        y.sum().backward()
        for layer in layers:
            layer.mode = "plain"
        print(float((layers[1](layers[0](x)) - y).detach().abs().max()))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={
            **os.environ, "XDG_CACHE_HOME": str(tmp_path), "CXX": "no-such-compiler",
            "PYTHONWARNINGS": "default",
        },
    )  # fmt: skip
    assert float(done.stdout) < 1e-5
    assert done.stderr.count("UserWarning") == 1
    assert "run eagerly instead (no C++ compiler (no-such-compiler))" in done.stderr
