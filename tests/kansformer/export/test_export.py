"""An exported file gives the model's logits and holds its metadata, or else is not written."""

import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from runpy import run_path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from kansformer.checkpoint import TrainedModel, load_model, save_model
from kansformer.data import Preprocessing, load_data
from kansformer.export import onnx_runner, pt2_runner, quantized, to_onnx, to_pt2
from kansformer.export.__main__ import synthetic_pictures
from kansformer.infer import Predictor
from models.vit_model import create_model
from tests.conftest import ROOT, write_folder

Command = Callable[..., tuple[int, str, str]]
NAMES = ("blue", "green", "größe, 3", "red")
PREPROCESSING = Preprocessing(16, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.875, "bilinear")
SETTINGS = {
    "kan": {"kan_hidden": 8},
    "group-kan": {"reg_tokens": 1, "layer_scale": 0.1, "grid_size": 4},
    "mlp": {"distilled": True},
}


def save_small(path: Path, ffn: str) -> Path:
    """Saves a small model of the given kind, with noise on all parameters."""
    torch.manual_seed(0)
    model = create_model(
        "kansformer_micro_patch8_16", num_classes=4, depth=1, embed_dim=48, ffn=ffn,
        **SETTINGS[ffn],
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_model(path, model, PREPROCESSING, NAMES, temperature=0.8)
    return path


def check(model: TrainedModel, run: Callable[[Tensor], Tensor]) -> None:
    """Compares logits on 64 pictures and on inputs far outside the grids, in batches of 1 and 7."""
    images = synthetic_pictures(model, 64)
    images = torch.cat([images, 10 * torch.randn(6, *images.shape[1:])])
    with torch.no_grad():
        expected = model(images)
    for size in (1, 7):
        logits = torch.cat([run(batch) for batch in images.split(size)])
        assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize("ffn", SETTINGS)
def test_onnx_gives_the_models_logits(ffn: str, tmp_path: Path) -> None:
    model = load_model(save_small(tmp_path / "w", ffn))
    packed = to_onnx(model)
    onnx.checker.check_model(onnx.load_from_string(packed), full_check=True)
    session = onnxruntime.InferenceSession(packed, providers=["CPUExecutionProvider"])
    check(model, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]))
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, 16, 16])
    assert (logits.name, logits.shape) == ("logits", ["batch", 4])
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert tuple(metadata["class_names"]) == NAMES
    assert metadata["temperature"] == 0.8
    assert Preprocessing(**metadata["preprocessing"]) == PREPROCESSING
    assert str(ROOT).encode() not in packed
    assert b"site-packages" not in packed
    weights = sum(4 * value.numel() for value in model.state_dict().values())
    assert len(packed) < 1.2 * weights + 100_000  # no tensor is stored twice

    small = quantized(packed)
    assert len(small) < 0.75 * len(packed)  # the graph and the patch embedding stay in float32
    images = synthetic_pictures(model, 64)
    exact, near = onnx_runner(packed)(images), onnx_runner(small)(images)
    assert 0 < (near - exact).abs().mean() < 0.1 * exact.std()
    kept = {entry.key: entry.value for entry in onnx.load_from_string(small).metadata_props}
    assert tuple(json.loads(kept["class_names"])) == NAMES


def test_pt2_gives_the_models_logits(tmp_path: Path) -> None:
    model = load_model(save_small(tmp_path / "w", "group-kan"))
    packed = to_pt2(model)
    check(model, pt2_runner(packed))
    files = {"kansformer.json": ""}
    torch.export.load(BytesIO(packed), extra_files=files)
    metadata = json.loads(files["kansformer.json"])
    assert tuple(json.loads(metadata["class_names"])) == NAMES
    assert json.loads(metadata["preprocessing"])["crop_pct"] == 0.875
    assert str(ROOT).encode() not in packed


@pytest.fixture
def export(command: Command, tmp_path: Path) -> Command:
    weights = save_small(tmp_path / "w", "mlp")
    name = "kansformer.export.__main__"
    return lambda *arguments: command(name, "--weights", weights, *arguments)


def test_the_command_verifies_writes_and_reports_the_accuracy(
    export: Command, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "colors", 4)
    bad = folder / "red" / "red 1.png"
    bad.write_text("no picture")
    arguments = ("--format", "onnx", "--output", "m.onnx", "--int8", "--data-path", "colors")
    status, out, err = export(*arguments)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("verified: logits differ from the model's by")
    assert lines[1].startswith("int8: the same class as the model for")
    assert lines[3].startswith("written: m.onnx, 0.1 MB")
    assert f"{bad.relative_to(tmp_path)}: not a picture" in err

    model, data = load_model(tmp_path / "w"), load_data(str(folder)).train
    run = onnx_runner((tmp_path / "m.onnx").read_bytes())
    correct = {"int8": [], "model": []}
    for path, label in zip(data.items, data.labels, strict=True):
        if path != str(bad):
            image = model.preprocessing(data.open(data.items.index(path)))[None]
            name = sorted(p.name for p in folder.iterdir())[label]
            correct["int8"].append(NAMES[run(image).argmax()] == name)
            correct["model"].append(NAMES[model(image).argmax()] == name)
    shares = {kind: sum(hits) / 11 for kind, hits in correct.items()}
    assert lines[2].startswith(
        f"accuracy on 11 pictures (all): {shares['int8']:.2%}, the model's {shares['model']:.2%};"
    )


def test_the_example_gives_the_answers_of_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs without torch, with the metadata in the file."""
    weights = save_small(tmp_path / "w", "mlp")
    (tmp_path / "m.onnx").write_bytes(to_onnx(load_model(weights)))
    random = np.random.default_rng(0)
    for number, shape in enumerate([(40, 53, 3), (61, 30), (7, 9, 3)]):
        picture = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        picture.save(tmp_path / f"{number}.png")
    deep = random.integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "3.png")
    layers = random.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(layers).save(tmp_path / "4.png")
    pictures = [str(tmp_path / f"{number}.png") for number in range(5)]
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", str(tmp_path / "m.onnx"), *pictures])
    run_path(str(ROOT / "examples" / "run_onnx.py"), run_name="__main__")
    for line, answer in zip(
        capsys.readouterr().out.splitlines(), Predictor.load(weights)(pictures), strict=True
    ):
        (best, *_) = answer["top"]
        start, _, probability = line.rpartition(", ")
        assert start == f"{answer['path']}: {best['class']}"
        assert float(probability) == pytest.approx(best["probability"], abs=1e-3)


def test_a_file_with_other_logits_is_not_written(
    export: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.pt2").write_text("the old one")

    def other(model: TrainedModel) -> bytes:
        bias = model.get_parameter("head.bias")
        with torch.no_grad():
            bias += 4e-4  # halved in the mean of the two heads
            packed = to_pt2(model)
            bias -= 4e-4
        return packed

    monkeypatch.setattr("kansformer.export.__main__.to_pt2", other)
    status, out, err = export("--format", "pt2", "--output", "m.pt2")
    assert (status, out) == (1, "")
    assert "m.pt2: not written, because its logits differ from the model's by 2.0e-04" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt2", "w"]
    assert (tmp_path / "m.pt2").read_text() == "the old one"


def test_a_missing_package_is_one_line(export: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    status, _, err = export("--format", "onnx", "--output", "m.onnx")
    assert status == 2
    assert "onnxscript is not installed; pip install -r requirements-export.txt" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "pt2", "--output", "x", "--int8"), "--int8 requires --format onnx"),
        (("--format", "pt2", "--output", "no/x"), "no/x: not a file in an existing folder"),
        (("--format", "pt2", "--output", "."), ".: not a file in an existing folder"),
        (("--format", "onnx", "--output", "x", "--weights", "y"), "y: no such weights file"),
        (("--format", "tflite", "--output", "x"), "invalid choice"),
    ],
)
def test_wrong_use_is_status_2(
    export: Command, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = export(*arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
