"""Predictions equal those of evaluate, in the order of the paths, with an answer for each."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kansformer.checkpoint import load_model
from kansformer.data import PictureDataset, load_data, make_loader
from kansformer.evaluate import evaluate
from kansformer.infer import Predictor, find_pictures


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained / "best.safetensors")


@pytest.fixture(scope="module")
def pictures(trained: Path) -> list[str]:
    return sorted(map(str, (trained.parent / "colors").rglob("*.png")))


def test_predict_equals_evaluate(predictor: Predictor, trained: Path) -> None:
    data = load_data(str(trained.parent / "colors"))
    model = load_model(trained / "best.safetensors")
    loader = make_loader(PictureDataset(data.train, model.preprocessing), 7)
    with torch.no_grad():
        expected = torch.cat([model(x).softmax(-1) for x, _ in loader])
    answers = predictor(data.train.items, topk=3)
    for path, row, answer in zip(data.train.items, expected, answers, strict=True):
        assert answer["path"] == path
        for top in answer["top"]:
            assert top["class"] == data.class_names[top["index"]]
            assert top["probability"] == pytest.approx(row[top["index"]].item(), abs=1e-6)
    correct = [Path(a["path"]).parent.name == a["top"][0]["class"] for a in answers]
    measured = evaluate(model, loader, torch.device("cpu"))
    assert measured["acc1"] == pytest.approx(100 * np.mean(correct))
    assert measured["acc1"] > 90  # the colors are easy to distinguish
    assert measured["count"] == 30


def test_evaluation_does_not_depend_on_the_batches(trained: Path) -> None:
    data = load_data(str(trained.parent / "colors"))
    model = load_model(trained / "best.safetensors").train()
    results = [
        evaluate(model, make_loader(PictureDataset(data.train, model.preprocessing), size),
                 torch.device("cpu"))
        for size in (1, 7, 30)
    ]  # fmt: skip
    assert model.training
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_bad_pictures_never_shift_the_others(
    predictor: Predictor, pictures: list[str], tmp_path: Path, batch_size: int
) -> None:
    (tmp_path / "broken.png").write_bytes(Path(pictures[0]).read_bytes()[:60])
    (tmp_path / "text.png").write_text("text")
    mixed: list[str] = []
    for number, path in enumerate(pictures[:9]):
        mixed.append(path)
        mixed.append(str(tmp_path / ("broken.png", "text.png", "missing.png")[number % 3]))
    answers = predictor(mixed, batch_size=batch_size)
    assert [answer["path"] for answer in answers] == mixed
    alone = {path: predictor(path)[0] for path in pictures[:9]}
    for path, answer in zip(mixed, answers, strict=True):
        if path in alone:
            assert answer["top"][0]["class"] == alone[path]["top"][0]["class"]
            assert answer["top"][0]["probability"] == pytest.approx(
                alone[path]["top"][0]["probability"], abs=1e-6
            )
        else:
            assert path in answer["error"]
            assert "top" not in answer


def test_pictures_in_memory(predictor: Predictor, pictures: list[str]) -> None:
    image = Image.open(pictures[0])
    (answer,) = predictor(image, topk=99)
    assert answer["path"] is None
    assert answer["top"] == predictor(Path(pictures[0]), topk=99)[0]["top"]
    assert sum(top["probability"] for top in answer["top"]) == pytest.approx(1)
    assert [t["probability"] for t in answer["top"]] == sorted(
        (t["probability"] for t in answer["top"]), reverse=True
    )
    assert predictor([]) == []


def test_files_in_memory_keep_their_names(predictor: Predictor, pictures: list[str]) -> None:
    good, bad = ("mine.png", BytesIO(Path(pictures[0]).read_bytes())), ("bad.png", BytesIO(b"no"))
    first, second = predictor([bad, good])
    assert first["path"] == "bad.png"
    assert first["error"].startswith("bad.png: not a picture")
    assert second == {**predictor(pictures[0])[0], "path": "mine.png"}
    assert predictor(good) == [second]


def test_find_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/c.png", "notes.txt", "odd [1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "void").mkdir()
    where = str(tmp_path)
    short = lambda names: [str(Path(n).relative_to(where)) for n in names]  # noqa: E731
    assert short(find_pictures([where])) == ["a.jpg", "b.png", "deep/c.png", "odd [1].png"]
    assert short(find_pictures([f"{where}/*.png"])) == ["b.png", "odd [1].png"]
    assert short(find_pictures([f"{where}/**/c.png"])) == ["deep/c.png"]
    assert short(find_pictures([f"{where}/d*"])) == ["deep/c.png"]
    assert short(find_pictures([f"{where}/odd [1].png"])) == ["odd [1].png"]
    assert short(find_pictures([f"{where}/void"])) == ["void"]
    assert short(find_pictures([f"{where}/no.png"])) == ["no.png"]
