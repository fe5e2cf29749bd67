"""What the pages and settings at the top of the repository say is true."""

import re

import pytest
import yaml

import kansformer
from tests.conftest import ROOT

LINT = re.findall(r"\$\(RUN\) (-m (?:ruff|mypy).*)", (ROOT / "Makefile").read_text())
TEST = re.findall(r"\$\(RUN\) (-m pytest.*)", (ROOT / "Makefile").read_text())
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]


def test_the_version_is_stated_once() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == kansformer.__version__
    assert [author["name"] for author in citation["authors"]] == ["The Vision KANsformer authors"]
    for work in citation["references"]:
        assert work.keys() >= {"type", "title", "authors"}
        assert work.keys() & {"url", "repository-code"}
    assert f"## [{kansformer.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_hooks_and_workflow_run_what_make_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == [f"python {line}" for line in LINT]
    for job, lines in (("lint", LINT), ("test", TEST)):
        steps = [step.get("run", "") for step in WORKFLOW[job]["steps"]]
        assert lines
        assert steps[-len(lines) :] == [f"python {line}" for line in lines]


TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# list items and paragraphs; the names in one are looked for in the files that it mentions
PARTS = re.split(r"\n\n|\n(?=\d+\. |- )", TEXT)


@pytest.mark.parametrize("part", [part for part in PARTS if "/" in part])
def test_the_names_in_contributing_exist(part: str) -> None:
    quoted = set(re.findall(r"`([^`]+)`", part))
    paths = {text for text in quoted if re.fullmatch(r"[a-z_/]+(/|\.py|\.h)", text)}
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    code = "".join((ROOT / path).read_text() for path in paths if (ROOT / path).is_file())
    names = {text for text in quoted if code and re.fullmatch(r"[A-Za-z_]+", text)} - {"assert"}
    assert {name for name in names if not re.search(rf"\b{name}\b", code)} == set()


@pytest.mark.parametrize("command", re.findall(r"`python (?:-m pytest )?(\w+/[^`]+)`", TEXT))
def test_the_commands_in_contributing_name_files_and_tests(command: str) -> None:
    path, *options = command.split()  # -k WORD
    text = (ROOT / path).read_text()
    assert all(re.search(rf"def test_\w*{word}", text) for word in options[1:])
