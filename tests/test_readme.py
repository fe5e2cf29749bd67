"""Every command and every piece of Python in the README and in docs/ runs, in a copy.

Training is cut to a few steps and the user's own pictures are stood in for. What installs or needs
make is left to the machine that runs this test, by `make test` itself.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from tests.conftest import ROOT, write_folder, write_picture
from tests.server import served, stop

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {
    line: None
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    for line in block.splitlines()
    if line
}  # each once, in their order; fmt: skip
INSTALLING = {
    "make demo", "make test", "python -m venv .venv", "source .venv/bin/activate",
    "python -m pytest",
    *(f"pip install -r {file.name}" for file in ROOT.glob("requirements*.txt")),
}  # fmt: skip
TRAINING = "--epochs 1 --max-steps 2 --warmup-epochs 0 --batch-size 16 --no-report".split()
LOOKING = "--pictures 20 --test-pictures 20 --edges 2 --units 2".split()
SHORT = {
    "train.py": TRAINING,
    "kansformer.compare": [*TRAINING, "--seeds", "1"],
    "kansformer.interpret": LOOKING,
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files, with pictures where the README expects the user's."""
    folder = tmp_path_factory.mktemp("clone")
    private = {ROOT: {".git", ".venv", "data"}, ROOT / "weights": set(os.listdir(ROOT / "weights"))}
    private[ROOT / "weights"] -= {"README.md", "digits.safetensors"}
    shutil.copytree(
        ROOT, folder, dirs_exist_ok=True,
        ignore=lambda where, names: private.get(Path(where), {"__pycache__"}),
    )  # fmt: skip
    for number, flower in enumerate(("daisy", "roses", "tulips")):
        for i in range(6):
            write_picture(folder / "flower_photos" / flower / f"{i}.jpg", (9, 9, 9), 9 * number + i)
    write_folder(folder / "more_flowers", 6)
    (folder / "weights" / "demo").mkdir()  # of `make demo`
    shutil.copy(folder / "weights" / "digits.safetensors",
                folder / "weights" / "demo" / "best.safetensors")  # fmt: skip
    write_picture(folder / "my_photo.jpg", (1, 2, 3), 0)
    vit = VisionTransformer(32, 16, embed_dim=64, depth=2, num_heads=1)
    save_file(vit.state_dict(), folder / "vit_base_patch16_224.safetensors")
    for digit in range(10):
        for i in range(20):
            name = f"IMG_{11 + i}{digit}0.JPG"
            write_picture(folder / "sign-digits" / str(digit) / name, (9, 9, 9), 99 * digit + i)
    return folder


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_shell_command_runs(clone: Path) -> None:
    commands = [shlex.split(line) for line in SHELL if line not in INSTALLING]
    assert len(commands) >= 8
    for name, *arguments in commands:
        assert name == "python", "only python lines are run here; add others to INSTALLING"
        if any(a.startswith("/usr/") and not Path(a).exists() for a in arguments):
            continue  # a data set of the system's that is not installed here
        if "kansformer.web" in arguments:  # it ends only when it is told to
            with served(arguments, clone) as (_, process):
                assert stop(process, signal.SIGTERM)[0] == 143
            continue
        program = arguments[1] if arguments[0] == "-m" else arguments[0]
        short = SHORT.get(program, [])
        run([sys.executable, *arguments, *short], clone)


PYTHON = [(page.name, code) for page in PAGES
          for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]  # fmt: skip


@pytest.mark.parametrize("page", sorted({page for page, _ in PYTHON}))
def test_every_piece_of_python_runs(clone: Path, page: str) -> None:
    for name, code in PYTHON:
        if name == page:
            run([sys.executable, "-W", "error", "-c", code], clone)


def test_it_opens_with_a_picture_and_the_two_commands() -> None:
    assert re.match(r"# .*\n\n!\[[^]]+\]\(([^)]+)\)\n", README)
    assert list(SHELL)[:2] == ["make demo", "make test"]
    for _, target in re.findall(r"(!?\[[^]]*\])\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
