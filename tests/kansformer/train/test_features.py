"""Features are what the head sees, are computed once, and are computed again when they must be."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor

from kansformer.data import Preprocessing, load_data
from kansformer.data.sources import Pictures
from kansformer.train.distributed import Ranks
from kansformer.train.features import METADATA_KEY, Extractor, Features, head_features, poolings
from models.vit_model import VisionTransformer, create_model
from tests.conftest import write_picture

SIZE = 16
ONE = Ranks(0, 1, torch.device("cpu"))


def vit(**changes: object) -> VisionTransformer:
    settings = {"num_classes": 3, "embed_dim": 24, "depth": 2, "ffn": "mlp"}
    return create_model("vit_micro_patch4_16", **{**settings, **changes}).eval()


def extractor(
    folder: Path, model: VisionTransformer | None = None, lines: list[str] | None = None
) -> Extractor:
    log: Callable[[str], None] = (lambda line: None) if lines is None else lines.append
    if model is None:
        torch.manual_seed(0)
        model = vit()
    return Extractor(model, Preprocessing(SIZE), folder, ONE, 0, log)


@pytest.fixture
def pictures(colors: Path) -> Pictures:
    return load_data(str(colors)).train


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures in each batch that passes through a model."""
    sizes: list[int] = []
    forward = Extractor._forward

    def counted(self: Extractor, images: Tensor) -> np.ndarray:
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Extractor, "_forward", counted)
    return sizes


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"reg_tokens": 2, "no_embed_class": True},
        {"class_token": False, "pool": "avg"},
        {"pool": "avg", "fc_norm": True},
        {"pre_logits": True},
        {"distilled": True},
        {"head": "kan"},
    ],
    ids=str,
)
@torch.no_grad()
def test_the_head_on_features_gives_the_models_logits(config: dict[str, object]) -> None:
    model = vit(**config)
    images = torch.randn(2, 3, SIZE, SIZE)
    for pool, columns in poolings(model).items():
        model.reset_classifier(3, pool)
        features = head_features(model, images)[:, columns]
        if model.head_dist is None:
            logits = model.head(features)
        else:
            first, second = features.chunk(2, dim=1)
            logits = (model.head(first) + model.head_dist(second)) / 2
        torch.testing.assert_close(logits, model(images))


@torch.no_grad()
def test_features_of_files_are_those_of_the_pictures(tmp_path: Path, pictures: Pictures) -> None:
    extract = extractor(tmp_path / "run")
    features = extract(pictures)
    singly = [extract.preprocessing(pictures.open(i))[None] for i in range(len(pictures))]
    expected = torch.cat([head_features(extract.model, image) for image in singly])
    np.testing.assert_allclose(features.values, expected, rtol=1e-4, atol=1e-5)
    assert features.labels.tolist() == pictures.labels.tolist()


def same(a: Features, b: Features) -> bool:
    return np.array_equal(a.values, b.values) and np.array_equal(a.labels, b.labels)


def test_features_are_computed_once(
    tmp_path: Path, pictures: Pictures, forwarded: list[int]
) -> None:
    first = extractor(tmp_path / "run")(pictures)
    assert sum(forwarded) == len(pictures)
    again = extractor(tmp_path / "run")(pictures)
    beside = extractor(tmp_path / "another run")(pictures)
    part = extractor(tmp_path / "run")(pictures.take(np.array([3, 1])))
    assert sum(forwarded) == len(pictures)
    assert same(first, again)
    assert same(first, beside)
    assert np.array_equal(part.values, first.values[[3, 1]])
    assert not (tmp_path / "another run").exists()


def test_what_changes_features_has_them_computed_again(
    tmp_path: Path, pictures: Pictures, forwarded: list[int]
) -> None:
    model = vit()
    extractor(tmp_path / "run", model)(pictures)
    forwarded.clear()
    model.reset_classifier(7)
    extractor(tmp_path / "run", model)(pictures)
    assert forwarded == []  # a head does not change its inputs
    write_picture(Path(pictures.items[4]), (1, 2, 3), 9)
    extractor(tmp_path / "run", model)(pictures)
    assert forwarded == [1]
    with torch.no_grad():
        model.norm.bias[0] += 1
    extractor(tmp_path / "run", model)(pictures)
    assert sum(forwarded) == 1 + len(pictures)


def test_pictures_in_memory(tmp_path: Path, forwarded: list[int]) -> None:
    digits = load_data("digits").train.take(np.arange(20))
    model = vit(in_chans=1)
    extract = Extractor(model, Preprocessing(SIZE, 1), tmp_path / "run", ONE, 0, print)
    values = extract(digits).values
    assert np.array_equal(extract(digits.take(np.arange(20)[::-1])).values, values[::-1])
    assert sum(forwarded) == 20


def test_damaged_files_are_named_and_computed_again(
    tmp_path: Path, pictures: Pictures, forwarded: list[int]
) -> None:
    first = extractor(tmp_path / "run")(pictures)
    (file,) = (tmp_path / "run" / "features").iterdir()
    packed = bytearray(file.read_bytes())
    for damage in (bytes(packed[:-4]) + b"\0\0\0\x40", bytes(packed[:100]), b""):
        file.write_bytes(damage)
        forwarded.clear()
        lines: list[str] = []
        assert same(extractor(tmp_path / "run", lines=lines)(pictures), first)
        assert sum(forwarded) == len(pictures)
        assert any(f"{file}: not usable" in line for line in lines)


def test_a_file_whose_pictures_do_not_match_is_not_used(
    tmp_path: Path, pictures: Pictures, forwarded: list[int]
) -> None:
    first = extractor(tmp_path / "run")(pictures)
    (file,) = (tmp_path / "run" / "features").iterdir()
    with safe_open(file, framework="numpy") as stored:
        metadata = json.loads(stored.metadata()[METADATA_KEY])
    for changed in ({**metadata, "pictures": metadata["pictures"][1:]}, ["no", "mapping"], 3):
        file.write_bytes(save({"features": first.values}, {METADATA_KEY: json.dumps(changed)}))
        lines: list[str] = []
        assert same(extractor(tmp_path / "run", lines=lines)(pictures), first)
        assert any("not usable" in line for line in lines)


def test_an_unreadable_picture_is_left_out(tmp_path: Path, pictures: Pictures) -> None:
    whole = extractor(tmp_path / "a")(pictures)
    Path(pictures.items[2]).write_bytes(b"no picture")
    features = extractor(tmp_path / "b")(pictures)
    kept = [index for index in range(len(pictures)) if index != 2]
    assert same(features, Features(whole.values[kept], whole.labels[kept]))


def test_after_an_interrupt_only_the_rest_is_computed(
    tmp_path: Path, pictures: Pictures, forwarded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kansformer.train.features.TOKENS_AT_ONCE", 17 * 8)
    counted = Extractor._forward

    def interrupted(self: Extractor, images: Tensor) -> np.ndarray:
        if len(forwarded) == 2:
            raise KeyboardInterrupt
        return counted(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "_forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extractor(tmp_path / "run")(pictures)
    assert forwarded == [8, 8]
    features = extractor(tmp_path / "run")(pictures)
    assert sum(forwarded) == len(pictures)
    assert same(features, extractor(tmp_path / "elsewhere" / "run")(pictures))


def test_augmented_views_are_functions_of_seed_and_number(
    tmp_path: Path, pictures: Pictures, forwarded: list[int]
) -> None:
    extract = extractor(tmp_path / "a" / "run")
    plain, one, two = (
        extract(pictures),
        extract(pictures, "small", 1),
        extract(pictures, "small", 2),
    )
    other = extract(pictures, "small", 1, seed=5)
    forwarded.clear()
    assert same(one, extract(pictures, "small", 1))
    assert forwarded == []
    assert same(one, extractor(tmp_path / "b" / "run")(pictures, "small", 1))
    for view in (plain, two, other):
        assert not np.allclose(one.values, view.values)
