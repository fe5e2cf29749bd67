"""Pictures cached in memory equal those of the files, bit for bit, unless they are reduced."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from kansformer.data import PictureDataset, Preprocessing, decoded, load_data, make_loader
from kansformer.data.augment import CROPS, POLICIES, least_side, make_augmentation
from kansformer.data.decoded import decode_files
from kansformer.errors import UserError
from tests.conftest import write_picture


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """Pictures of several sizes, modes and formats, and a second name for one of them."""
    for i in range(40):
        write_picture(tmp_path / "varied" / "ab"[i % 2] / f"{i:02}.png", (99, 99, 99), i, 8 + i)
    grey = Image.linear_gradient("L").resize((30, 20))
    grey.save(tmp_path / "varied" / "a" / "grey.jpg")
    Image.merge("RGBA", [grey] * 4).save(tmp_path / "varied" / "b" / "clear.png")
    os.link(tmp_path / "varied" / "a" / "grey.jpg", tmp_path / "varied" / "b" / "again.jpg")
    return tmp_path / "varied"


@pytest.mark.parametrize("workers", [1, 2])
def test_cached_pictures_are_equal_bit_for_bit(varied: Path, workers: int) -> None:
    files = load_data(str(varied)).train
    memory = files.cached(workers=workers)
    assert (files.in_memory, memory.in_memory) == (False, True)
    assert memory.cached() is memory
    for i in range(len(files)):
        assert memory.name(i) == files.name(i)
        one, two = files.open(i), memory.open(i)
        assert one.mode == two.mode
        assert np.array_equal(one, two)
    transform = make_augmentation("photos", Preprocessing(16))
    chosen = np.arange(0, len(files), 2)
    loaders = [
        make_loader(PictureDataset(pictures.take(chosen), transform, 3), 8, workers=n)
        for pictures, n in ((files, 0), (memory, 0), (memory, 2))
    ]
    for batches in zip(*loaders, strict=True):
        for x, y in batches[1:]:
            assert torch.equal(x, batches[0][0])
            assert torch.equal(y, batches[0][1])


def test_a_linked_file_uses_memory_once(varied: Path) -> None:
    files = load_data(str(varied)).train
    sizes = {os.stat(p).st_ino: np.asarray(files.open(i)).nbytes for i, p in enumerate(files.items)}
    assert len(sizes) == len(files) - 1
    assert files.cached().nbytes == sum(sizes.values())
    assert files.nbytes == 0
    digits = load_data("digits").train
    assert digits.cached() is digits
    assert digits.nbytes == len(digits) * 64


def test_larger_pictures_are_reduced(varied: Path) -> None:
    files = load_data(str(varied)).train
    memory = files.cached(at_most=12)
    assert memory.nbytes < files.cached().nbytes / 2
    for i in range(len(files)):
        full, small = files.open(i), memory.open(i)
        assert min(small.size) == min(12, *full.size)
        assert small.width / small.height == pytest.approx(full.width / full.height, rel=0.05)
        assert np.asarray(small).mean() == pytest.approx(np.asarray(full).mean(), abs=2)


def test_exceeding_the_memory_limit_is_refused_before_decoding(
    varied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = load_data(str(varied)).train.items
    needed = sum(pixels.nbytes for pixels in decode_files(paths)[:-1])
    assert len(decode_files(paths, memory=needed + 3000)) == len(paths)
    monkeypatch.setattr(decoded, "in_processes", lambda *arguments: pytest.fail("decoding began"))
    with pytest.raises(UserError, match="leave out --cache"):
        decode_files(paths, memory=needed // 2)
    monkeypatch.undo()
    monkeypatch.setattr(decoded, "SAMPLE", 1)  # the first picture is the smallest
    with pytest.raises(UserError, match="leave out --cache"):
        decode_files(paths, memory=needed // 2)


def test_a_broken_picture_is_named(varied: Path) -> None:
    (varied / "a" / "00.png").write_text("no picture")
    with pytest.raises(UserError, match=r"00.png: not a picture"):
        load_data(str(varied)).train.cached()


@pytest.mark.parametrize("policy", CROPS)
@pytest.mark.parametrize("size", [(300, 300), (500, 300), (300, 700)])
def test_crops_of_a_picture_with_the_least_side_are_never_upsampled(
    policy: str, size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(32)
    scale = least_side(policy, preprocessing) / min(size)
    image = Image.new("RGB", (round(size[0] * scale), round(size[1] * scale)))
    steps = make_augmentation(policy, preprocessing).transforms
    (crop,) = [step for step in steps if isinstance(step, v2.RandomResizedCrop)]
    sides = [min(map(crop.make_params([image]).get, ("height", "width"))) for _ in range(500)]
    assert min(sides) >= 32
    if size == (300, 300):
        assert min(sides) <= 36  # the least side is not larger than needed


def test_least_side_of_other_policies_is_that_of_evaluation() -> None:
    for policy in POLICIES.keys() - CROPS.keys():
        assert least_side(policy, Preprocessing(28, crop_pct=0.875)) == 32


def test_jpegs_are_decoded_at_reduced_size_only_with_at_least(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "large.jpg")
    pictures = load_data(str(tmp_path)).train
    sizes: list[tuple[int, int]] = []

    def transform(image: Image.Image) -> torch.Tensor:
        sizes.append(image.size)
        return torch.zeros(1)

    for at_least in (None, 150, 100, 30):
        PictureDataset(pictures, transform, at_least=at_least)[0, 0]
    assert sizes == [(400, 300), (200, 150), (200, 150), (50, 38)]
