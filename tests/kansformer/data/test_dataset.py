"""Augmentation depends on (seed, epoch, picture) only, and preprocessing equals torchvision's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from kansformer.data import (
    PictureDataset,
    Preprocessing,
    TrainingSampler,
    load_data,
    training_loader,
)
from kansformer.data.augment import POLICIES, make_augmentation

PREPROCESSING = Preprocessing(16)


def batches(folder: Path, workers: int, epoch: int, seed: int = 0) -> list:
    dataset = PictureDataset(
        load_data(str(folder)).train, make_augmentation("photos", PREPROCESSING), seed
    )
    sampler = TrainingSampler(dataset.pictures.labels, 6, seed=seed)
    loader = training_loader(dataset, sampler, workers=workers)
    sampler.epoch = epoch
    return list(loader)


def test_batches_depend_on_epoch_and_seed_but_not_on_workers(colors: Path) -> None:
    alone, parallel = batches(colors, 0, 1), batches(colors, 2, 1)
    for (x, y), (x2, y2) in zip(alone, parallel, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    other_epoch, other_seed = batches(colors, 0, 2), batches(colors, 0, 1, seed=5)
    assert not torch.equal(alone[0][0], other_epoch[0][0])
    assert not torch.equal(alone[0][0], other_seed[0][0])


def test_augmentation_of_a_picture_does_not_depend_on_the_order(colors: Path) -> None:
    pictures = load_data(str(colors)).train
    dataset = PictureDataset(pictures, make_augmentation("photos", PREPROCESSING), 3)
    first = dataset[4, 7][0]
    dataset[4, 8]
    assert torch.equal(dataset[4, 7][0], first)


def test_augmentation_does_not_change_the_global_generator(colors: Path) -> None:
    dataset = PictureDataset(
        load_data(str(colors)).train, make_augmentation("photos", PREPROCESSING)
    )
    state = torch.get_rng_state()
    dataset[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_epoch_has_every_picture_once(colors: Path) -> None:
    labels = torch.cat([y for _, y in batches(colors, 0, 0)])
    assert torch.bincount(labels).tolist() == [10, 10, 10]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("size", [(40, 20), (8, 8), (16, 16)])
def test_policies_return_the_models_input_shape(
    policy: str, in_chans: int, size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(16, in_chans)
    augmentation = make_augmentation(policy, preprocessing)
    for mode in ("L", "RGB"):
        x = augmentation(Image.new(mode, size, "white"))
        assert x.shape == (in_chans, 16, 16)
        assert x.dtype == torch.float32
        assert x.abs().max() <= 1


def test_policy_none_equals_the_preprocessing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain = make_augmentation("none", PREPROCESSING)
    torch.testing.assert_close(plain(image), PREPROCESSING(image))


def test_digits_are_never_mirrored() -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:, :8] = 255  # bright on the left
    for policy, mirrored in (("digits", False), ("small", True)):
        augmentation = make_augmentation(policy, Preprocessing(16, 1))
        views = [augmentation(Image.fromarray(pixels)) for _ in range(40)]
        assert any(v[..., :8].mean() < v[..., 8:].mean() for v in views) == mirrored, policy


def test_a_long_thin_picture_is_cropped_before_upsampling() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90_000, 1), dtype=np.uint8)
    x = Preprocessing(224, 1)(Image.fromarray(pixels))  # uncropped, it would be 4.5 gigapixels
    assert x.shape == (1, 224, 224)


@pytest.mark.parametrize("size", [(16, 16), (40, 20), (17, 90), (5, 9)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_preprocessing_equals_torchvisions(size: tuple[int, int], crop_pct: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = v2.Compose([
        v2.Resize(round(16 / crop_pct), InterpolationMode.BICUBIC),
        v2.CenterCrop(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])(image)  # fmt: skip
    ours = Preprocessing(16, crop_pct=crop_pct)(image)
    torch.testing.assert_close(ours, torch.Tensor(expected), rtol=0, atol=1e-6)
