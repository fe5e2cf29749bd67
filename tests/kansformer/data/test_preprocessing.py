"""Normalization by mean and standard deviation: one number or one per channel, color and grey."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from kansformer.data import Preprocessing
from kansformer.data.preprocessing import STATISTICS

MEAN, STD = STATISTICS["imagenet"]


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))


def test_one_number_normalizes_all_channels_alike() -> None:
    pixels = TF.to_dtype(TF.pil_to_tensor(picture()), torch.float32, scale=True)
    expected = (pixels - 0.3) / 0.4
    assert torch.equal(Preprocessing(9, 3, 0.3, 0.4)(picture()), expected)
    older = json.loads('{"img_size": 9, "in_chans": 3, "mean": 0.3, "std": 0.4, "crop_pct": 1.0}')
    assert torch.equal(Preprocessing(**older)(picture()), expected)


def test_one_number_per_channel_equals_torchvisions_normalize() -> None:
    preprocessing = Preprocessing(9, 3, MEAN, STD)
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    expected = v2.Normalize(MEAN, STD)(to_tensor(picture()))
    torch.testing.assert_close(preprocessing(picture()), expected, rtol=0, atol=1e-6)
    copy = Preprocessing(**json.loads(json.dumps(preprocessing.to_dict())))
    assert copy == preprocessing
    assert torch.equal(copy(picture()), preprocessing(picture()))


def test_equal_channels_equal_one_number() -> None:
    one, three = Preprocessing(9, 3, 0.25, 0.5), Preprocessing(9, 3, (0.25,) * 3, (0.5,) * 3)
    assert torch.equal(one(picture()), three(picture()))


def test_grey_has_the_mean_of_the_three_channels() -> None:
    grey = Preprocessing(9, 3, MEAN, STD).for_input(5, 1)
    assert (grey.img_size, grey.in_chans) == (5, 1)
    assert grey.mean == pytest.approx(0.449, abs=1e-12)
    assert grey(picture()).shape == (1, 5, 5)
    assert Preprocessing(9, 1).with_statistics("imagenet").mean == grey.mean
    assert Preprocessing(9, 3).with_statistics("imagenet").mean == MEAN
    assert grey.for_input(9, 3).mean == grey.mean
    assert Preprocessing(9, 3, MEAN, STD).with_statistics("half") == Preprocessing(9, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": (0.5, 0.5)},
        {"mean": [0.5, 0.5, "x"]},
        {"std": (0.5, 0.5, 0.0)},
        {"std": (0.5, 0.5, float("nan"))},
        {"mean": True},
        {"mean": ()},
        {"mean": {"red": 1}},
        {"in_chans": 1, "mean": (0.5, 0.5, 0.5)},
    ],
    ids=str,
)
def test_an_invalid_mean_or_std_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"mean|std"):
        Preprocessing(**{"img_size": 9, "in_chans": 3, **changes})


@pytest.mark.parametrize(("channels", "statistics"), [(1, "half"), (3, "half"), (3, "imagenet")])
def test_denormalize_inverts_normalize(channels: int, statistics: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels.flat[:2] = 0, 255
    preprocessing = Preprocessing(img_size=16, in_chans=channels).with_statistics(statistics)
    picture = preprocessing.convert(Image.fromarray(pixels))
    restored = preprocessing.denormalize(preprocessing.normalize(picture))
    assert restored.mode == picture.mode
    assert np.array_equal(np.asarray(restored), np.asarray(picture))
