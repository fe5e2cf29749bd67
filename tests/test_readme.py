"""Every command and every piece of Python in the READMEs and in docs/ runs, in a copy.

Training is cut to a few steps and the user's own pictures are stood in for. What installs or needs
make is left to the machine that runs this test, by `make test` itself.
"""

import ast
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from tests.conftest import ROOT, write_folder, write_picture
from tests.kansformer.data.test_originals import write_mnist
from tests.processes import start, status_of
from tests.server import served, stop

READMES = ("README.md", "README.zh-CN.md")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*(ROOT / name for name in READMES), *ROOT.glob("docs/*.md"))
}
SHELL = {
    page: [line for block in re.findall(r"```bash\n(.*?)```", text, re.S)
           for line in block.splitlines() if line]
    for page, text in PAGES.items()
}  # fmt: skip
INSTALLING = {
    "make demo", "make test", "python -m venv .venv", "source .venv/bin/activate",
    "python -m pytest",
    *(f"pip install -r {file.name}" for file in ROOT.glob("requirements*.txt")),
}  # fmt: skip
TRAINING = (
    "--epochs 1 --max-steps 2 --warmup-epochs 0 --batch-size 16 --no-report"
    " --model kansformer_micro_patch8_16"
)
SHORT = {
    "train.py": TRAINING,
    "kansformer.compare": f"{TRAINING} --seeds 1",
    "kansformer.interpret": "--pictures 20 --test-pictures 20 --edges 2 --units 2",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository's files, with pictures where the README expects the user's."""
    folder = tmp_path / "clone"
    private = {ROOT: {".git", ".venv", "data"}, ROOT / "weights": set(os.listdir(ROOT / "weights"))}
    private[ROOT / "weights"] -= {"README.md", "digits.safetensors"}
    shutil.copytree(
        ROOT, folder, ignore=lambda where, names: private.get(Path(where), {"__pycache__"})
    )
    for number, flower in enumerate(("daisy", "roses", "tulips")):
        for i in range(6):
            write_picture(folder / "flower_photos" / flower / f"{i}.jpg", (9, 9, 9), 9 * number + i)
    write_folder(folder / "more_flowers", 6)
    write_mnist(folder / "fashion-mnist", packed=False, fashion=True, training=200)
    write_picture(folder / "my_photo.jpg", (1, 2, 3), 0)
    vit = VisionTransformer(32, 16, embed_dim=64, depth=2, num_heads=1)
    save_file(vit.state_dict(), folder / "vit_base_patch16_224.safetensors")
    for digit in range(10):
        for i in range(20):
            name = f"IMG_{11 + i}{digit}0.JPG"
            write_picture(folder / "sign-digits" / str(digit) / name, (9, 9, 9), 99 * digit + i)
    return folder


def run(line: str, folder: Path) -> None:
    """`python LINE`."""
    arguments = shlex.split(line)
    is_module = arguments[0] == "-m"

    def work() -> None:
        warnings.simplefilter("ignore", RuntimeWarning)  # of modules that are imported already
        sys.argv = arguments[is_module:]
        (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")

    run_forked(work, line, folder)


def run_forked(work: Callable[[], object], name: str, folder: Path) -> None:
    """Runs it in a process of its own there, without starting Python and importing all anew."""

    def script() -> None:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        try:
            work()
        except SystemExit as leaving:
            sys.stdout.flush()
            os._exit(int(leaving.code or 0))

    log = folder / "log"
    assert status_of(start(script, log), seconds=300) == 0, (name, log.read_text()[-2000:])


@pytest.mark.parametrize("page", sorted(page for page, lines in SHELL.items() if lines))
def test_every_shell_command_runs(clone: Path, page: str) -> None:
    if page not in READMES:  # which train this model themselves
        run(f"train.py --data-path flower_photos --output weights/flowers {TRAINING}", clone)
    address, process = "", None
    with ExitStack() as serving:
        for line in SHELL[page]:
            program, _, rest = line.replace("/usr/share/datasets/", "").partition(" ")
            if line in INSTALLING:
                continue
            if program == "curl":
                local = shlex.split(rest.replace("http://127.0.0.1:7860", address))
                subprocess.run(["curl", "--silent", "--fail", *local], cwd=clone, check=True)
                continue
            assert program == "python", "only python and curl are run here; add to INSTALLING"
            if "kansformer.web" in line:  # it ends only when it is told to
                address, process = serving.enter_context(served(shlex.split(rest), clone))
                continue
            name = rest.removeprefix("-m ").split()[0]
            refining = " --epochs 2" if "--refine-grid" in line else ""  # after the first
            run(f"{rest} {SHORT.get(name, '')}{refining}", clone)
        if process is not None:
            assert stop(process, signal.SIGTERM)[0] == 143


PYTHON = {page: re.findall(r"```python\n(.*?)```", text, re.S) for page, text in PAGES.items()}


@pytest.mark.parametrize("page", sorted(page for page, pieces in PYTHON.items() if pieces))
def test_every_piece_of_python_runs(clone: Path, page: str) -> None:
    for code in PYTHON[page]:
        run_forked(partial(exec, code, {"__name__": "__main__"}), code, clone)


@pytest.mark.parametrize("page", READMES)
def test_it_opens_with_a_picture_and_the_two_commands(page: str) -> None:
    assert re.match(r"# .*\n\n!\[[^]]+\]\(([^)]+)\)\n", PAGES[page])
    assert SHELL[page][:2] == ["make demo", "make test"]
    assert PAGES[page].count("\n") < 160


def test_both_readmes_state_the_same() -> None:
    """Numbers, commands, code and links of the Chinese README are those of the English one."""

    def stated(page: str) -> tuple[object, ...]:
        text = PAGES[page]
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        return (
            Counter(re.findall(r"[+-]?\d+(?:[.,]\d+)*", text)),
            SHELL[page],
            [ast.dump(ast.parse(code)) for code in PYTHON[page]],  # comments are translated
            Counter(re.findall(r"`([^`]+)`", prose)),
            Counter(targets(page)) - Counter(READMES),
        )

    assert stated("README.md") == stated("README.zh-CN.md")
    assert "README.zh-CN.md" in targets("README.md")
    assert "README.md" in targets("README.zh-CN.md")


def targets(page: str) -> list[str]:
    """What the links and pictures of a page point to."""
    return re.findall(r"!?\[[^]]*\]\(([^)]+)\)", PAGES[page])


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_leads_somewhere(page: str) -> None:
    for target in targets(page):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_index_lists_every_page() -> None:
    listed = {f"docs/{target}" for target in targets("docs/README.md")}
    assert {page for page in PAGES if page.startswith("docs/")} - listed == {"docs/README.md"}
