"""The examples run, draw their pictures, and reach the results they show; training is shortened."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from kansformer.regression import KANTrainer
from tests.conftest import ROOT, write_folder

EXAMPLES = ROOT / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> ModuleType:
    """An example as a module, with these arguments on the command line."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # examples add the project to it
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fit_1d", "40 intervals: RMSE"),
        ("fit_2d", "residual [2, 5, 5, 1]  test RMSE"),
        ("read_modules", "lipids"),
        ("prune_edges", "input 0, sin(πx)  importance"),
    ],
)
def test_examples_of_small_kans_run_and_draw(
    name: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    fit = KANTrainer.fit

    def short(self: KANTrainer, *data: Any, epochs: int, **options: Any) -> Any:
        assert epochs >= 200
        return fit(self, *data, epochs=3, **options)

    monkeypatch.setattr(KANTrainer, "fit", short)
    picture = tmp_path / f"{name}.png"
    example(name, monkeypatch, "--save", picture).main()
    out = capsys.readouterr().out
    assert words in out
    assert f"wrote {picture}" in out
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 200


def test_the_example_ends_at_the_formula() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/hello_kan.py", "--seed", "0", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result.keys() == {"formula", "train_rmse", "test_rmse", "seconds"}
    assert result["formula"] == "exp(x_2**2 + sin(3.1416*x_1))"
    assert result["test_rmse"] <= 1e-12
    assert done.stderr == ""


def test_the_table_of_formulas_is_written_into_the_readme(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = example("find_formulas", monkeypatch, "--only", 2, "--write")
    readme = tmp_path / "README.md"
    readme.write_text(module.README.read_text())
    monkeypatch.setattr(module, "README", readme)
    module.main()
    table = readme.read_text().split(module.START)[1].split(module.END)[0]
    assert table.strip() == capsys.readouterr().out.strip()
    assert "| 2 | sin(x) + y² | -3 to 3 | `y**2 + sin(x)` |" in table
    assert "1 of 1" in table
    original = (EXAMPLES / "README.md").read_text()
    assert readme.read_text().split(module.START)[0] == original.split(module.START)[0]
    assert readme.read_text().split(module.END)[1] == original.split(module.END)[1]


def test_the_notebook_gives_the_output_it_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    cells = json.loads((EXAMPLES / "hello_kan.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for piece in code:
        exec(piece.replace("%matplotlib inline", ""), names)
    shown = "".join(cells[-1]["outputs"][-1]["text"])
    assert capsys.readouterr().out.endswith(shown)
    assert shown.strip() == "exp(x_2**2 + sin(3.1416*x_1))"


def test_the_notebook_of_photographs_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    cells = json.loads((EXAMPLES / "photographs.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    first, *others = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    exec(first, names)
    assert names.keys() >= {"DATA", "OUTPUT", "WEIGHTS", "FLAGS"}
    output, weights = tmp_path / "output", tmp_path / "vit.safetensors"
    vit = VisionTransformer(16, 8, num_classes=5, embed_dim=64, depth=1, num_heads=1)
    save_file(vit.state_dict(), weights)
    names |= {"DATA": str(write_folder(tmp_path / "colors")), "OUTPUT": str(output)}
    names |= {"WEIGHTS": str(weights), "FLAGS": {
        "epochs": 1, "batch_size": 8, "warmup_epochs": 0.0, "workers": 0, "device": "cpu",
        "report": False,
    }}  # fmt: skip
    for piece in others:
        exec(piece, names)
    out = capsys.readouterr().out
    for words in ("all classes", "val: ", "precision", "all splines at zero", "logits differ by"):
        assert words in out
    assert float(names["difference"]) < 1e-4
    assert {path.name for path in output.iterdir()} >= {"best.safetensors", "model.onnx"}


def test_the_readme_names_every_example() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    files = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]
    assert [file.name for file in files if f"`{file.name}`" not in readme] == []
