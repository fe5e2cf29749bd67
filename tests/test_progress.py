"""Progress bars are shown on terminals only; output into a file consists of whole lines."""

import ast
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from kansformer.errors import run_command
from kansformer.progress import progress_bar
from tests.conftest import ROOT, write_folder

SOURCES = [*(ROOT / "kansformer").rglob("*.py"), *(ROOT / "models").rglob("*.py")]
SOURCES += [*ROOT.glob("*.py"), *(ROOT / "examples").glob("*.py")]


def test_tqdm_is_used_in_one_module_only() -> None:
    for path in SOURCES:
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        names = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        names |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        uses = any(name and name.split(".")[0] == "tqdm" for name in names)
        assert uses == (path == ROOT / "kansformer" / "progress.py"), path


def run(log: Path, *command: object) -> str:
    """Runs a Python script with stdout and stderr in one file, as a scheduler does; its output."""
    environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
    environment |= {"PYTHONPATH": str(ROOT), "KAN_MODE": "eager"}
    with log.open("wb") as file:
        done = subprocess.run(
            [sys.executable, *map(str, command)], stdout=file, stderr=file, env=environment,
            cwd=log.parent, timeout=240,
        )  # fmt: skip
    text = log.read_bytes().decode()
    assert done.returncode == 0, text
    return text


def test_commands_write_whole_lines_into_a_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "colors", 20)
    log = tmp_path / "log"
    flags = "--model kansformer_micro_patch8_16 --stem patch --epochs 2 --batch-size 16 --workers 1"
    flags += " --find-lr --ffn mlp"
    train = run(
        log, ROOT / "train.py", "--data-path", folder, "--output", tmp_path / "mlp", *flags.split()
    )
    epochs = [line.split()[1] for line in train.splitlines() if line.startswith("epoch ")]
    assert epochs == ["1/2", "2/2"]
    best = tmp_path / "mlp" / "best.safetensors"
    logs = {"train": train, "predict": run(log, ROOT / "predict.py", folder, "--weights", best)}
    for name, text in logs.items():
        assert "\r" not in text, (name, text)
        assert "it/s" not in text, (name, text)


def test_lines_are_written_to_a_file_immediately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)

        def main() -> None:
            sys.stdout.write("epoch 1\n")
            assert path.read_text() == "epoch 1\n"

        assert run_command(main) == 0


def drawn(monkeypatch: pytest.MonkeyPatch, shown: bool | None, terminal: bool) -> str:
    """The output of a progress bar on stderr."""
    if not terminal:
        file = io.StringIO()
        monkeypatch.setattr(sys, "stderr", file)
        list(progress_bar(range(3), "work", 3, shown=shown))
        return file.getvalue()
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        list(progress_bar(range(3), "work", 3, shown=shown))
        file.write("end")
        file.flush()
        text = os.read(reader, 10_000).decode()
    os.close(reader)
    return text.removesuffix("end")


@pytest.mark.parametrize(
    ("shown", "terminal", "disabled", "expected"),
    [
        (None, True, "", True),
        (None, False, "", False),
        (None, True, "1", False),
        (True, False, "", True),
        (False, True, "", False),
    ],
)
def test_a_bar_is_drawn_on_terminals_only_by_default(
    shown: bool | None,
    terminal: bool,
    disabled: str,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", disabled)
    assert ("work" in drawn(monkeypatch, shown, terminal)) == expected
