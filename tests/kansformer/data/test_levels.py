"""Pictures of more than 8 bits: one scale for a data set, which travels with the model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kansformer.checkpoint import load_model
from kansformer.data import Preprocessing, load_data, usable
from kansformer.data.doctor import examine
from kansformer.data.findings import levels_of
from kansformer.data.images import Stored
from kansformer.data.inspection import Facts
from kansformer.infer import Predictor
from kansformer.train import train
from kansformer.train.configure import configure

KINDS = {"uint16": 4095, "int32": 1_000_000, "float32": 255.0, "float32 to one": 1.0}


@pytest.fixture(params=KINDS)
def deep(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, float]:
    """Two classes, one dark and one bright, in an unusual range; and what is white in it."""
    white, dtype = KINDS[request.param], request.param.split()[0]
    random = np.random.default_rng(0)
    for name, low, high in (("dark", 0, 0.4), ("bright", 0.6, 1)):
        for i in range(12):
            values = (low + (high - low) * random.random((12, 12))) * white
            path = tmp_path / "deep" / name / f"{i}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(dtype)).save(path)
    return tmp_path / "deep", {1_000_000: 1_048_575}.get(white, white)


def test_all_pictures_of_a_set_have_one_scale(deep: tuple[Path, float]) -> None:
    folder, white = deep
    data, findings = usable(load_data(str(folder)))
    assert findings == []
    for index in range(len(data.train)):
        raw = np.asarray(Image.open(data.train.items[index])).astype(float)
        expected = (raw / white * 255).clip(0, 255)
        shown = np.asarray(data.train.open(index)).astype(float)
        assert np.abs(shown - expected).max() <= 0.5001
        assert len(np.unique(shown)) > 50
    half = data.with_validation(0.5, 0)
    assert half.train.levels == half.val.levels == data.train.levels
    cached = half.val.cached(workers=1)
    assert all(np.array_equal(cached.open(i), half.val.open(i)) for i in range(len(cached)))


def test_the_scale_travels_from_training_to_prediction(
    deep: tuple[Path, float], tmp_path: Path
) -> None:
    folder, white = deep
    flags = {
        "data_path": str(folder), "output": str(tmp_path / "run"), "device": "cpu", "epochs": 8,
        "model": "kansformer_micro_patch8_16", "augment": "none", "batch_size": 8, "lr": 3e-3,
        "report": False,
    }  # fmt: skip
    config, data = configure(flags)
    summary = train(config, data, log=lambda line: None)
    assert summary["val_acc1"] == 100
    model = load_model(tmp_path / "run" / "best.safetensors")
    assert [white_ for _, white_ in model.preprocessing.levels.values()] == [white]
    predictor = Predictor(model)
    for path in data.val.items:
        by_path = predictor(path)[0]
        with Image.open(path) as image:
            assert predictor(image)[0]["top"] == by_path["top"]
        assert by_path["top"][0]["class"] == Path(path).parent.name


def test_the_doctor_says_the_scale(deep: tuple[Path, float]) -> None:
    folder, white = deep
    report = examine(str(folder))
    (finding,) = [f for f in report.findings if f.kind == "levels"]
    assert f"0 is black and {white:g} is white" in finding.text
    assert not [f for f in report.findings if f.kind.startswith("duplicates")]


def test_pictures_that_differ_below_8_bits_are_not_equal(tmp_path: Path) -> None:
    for name, value in (("a", 100), ("b", 101)):
        for i in range(2):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4 + i), value, np.uint16)).save(path)
    assert not [f for f in examine(str(tmp_path)).findings if f.kind.startswith("duplicates")]


@pytest.mark.parametrize(
    ("mode", "low", "high", "levels"),
    [
        ("I;16", 0, 65535, (0, 65535)), ("I;16B", 3, 4095, (0, 4095)), ("I;16", 0, 4096, (0, 8191)),
        ("I;16", 0, 9, (0, 255)), ("I", -1000, 3000, (-1000, 4095)), ("I", 0, 256, (0, 511)),
        ("F", 0, 0.3, (0, 1)), ("F", 0, 1.001, (0, 255)), ("F", -0.5, 0.5, (-0.5, 1)),
        ("F", 0, 254.5, (0, 255)), ("F", 0, 1e30, (0, 1e30)),
    ],
)  # fmt: skip
def test_levels_by_the_ends_of_a_set(
    mode: str, low: float, high: float, levels: tuple[float, float]
) -> None:
    one = Stored("TIFF", mode, 4, 4, 1, True, False, low, high)
    other = Stored("TIFF", mode, 4, 4, 1, True, False, max(low, 0), min(high, 0.1))
    facts = [Facts(digest="a", stored=other), Facts(digest="b", stored=one)]
    facts += [Facts(digest="c", stored=Stored("PNG", "RGB", 4, 4, 1, False, False))]
    assert levels_of(facts) == {mode[:4]: levels}
    assert levels_of(facts[2:]) == {}


def test_levels_are_kept_in_json_and_checked() -> None:
    made = Preprocessing(8, 1, levels={"I;16": (0, 4095)})
    again = Preprocessing(**json.loads(json.dumps(made.to_dict())))
    assert again == made
    for wrong in (
        {"RGB": (0, 1)},
        {"F": (1, 1)},
        {"I": (0, float("inf"))},
        {"F": (0, float("nan"))},
    ):
        with pytest.raises(ValueError, match="out of bounds"):
            Preprocessing(8, 1, levels=wrong)
