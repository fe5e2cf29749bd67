"""C++ kernels are compiled once for a machine and kept; without a compiler layers run eagerly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import native
from tests.conftest import ROOT
from tests.models.test_kan_ops import needs_compiler

SOURCE = 'extern "C" int answer() { return ANSWER; }'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ file, and an empty folder for kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "answers.cpp"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_libraries_are_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library(source, ANSWER=42).answer() == 42
    assert native.library(source, ANSWER=43).answer() == 43
    kept = sorted(native.cache_folder().iterdir())
    assert len(kept) == 2
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native.library(source, ANSWER=42).answer() == 42
    assert sorted(native.cache_folder().iterdir()) == kept


@needs_compiler
def test_a_damaged_file_is_made_again(source: Path) -> None:
    native.library(source, ANSWER=1)
    (kept,) = native.cache_folder().iterdir()
    kept.unlink()  # not written over: this process has it open
    kept.write_bytes(b"no library")
    assert native.library(source, ANSWER=1).answer() == 1


@needs_compiler
def test_the_compiler_can_be_given_with_arguments(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"env {os.environ.get('CXX') or 'c++'}")
    assert native.library(source, ANSWER=42).answer() == 42


@needs_compiler
def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source / "a file is no folder"))
    assert native.library(source, ANSWER=42).answer() == 42


def test_a_machine_without_a_home_gets_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(UserWarning, match="run eagerly instead"):
        assert native.kernels.__wrapped__("kan", torch.float32, 3, 12, None) is None


@needs_compiler
def test_the_compiler_s_first_complaint_is_the_reason(source: Path) -> None:
    source.with_name("other.h").write_text("no C++")
    source.write_text('#include "other.h"')
    with pytest.raises(OSError, match=r"other\.h.*error"):
        native.library(source)
    assert not list(native.cache_folder().iterdir())


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
