"""Augmentation policies: what may happen to a training picture without changing its class."""

from torch import nn
from torchvision.transforms import InterpolationMode, v2

from kansformer.data.preprocessing import Preprocessing

BICUBIC = InterpolationMode.BICUBIC


def _fit(preprocessing: Preprocessing) -> list[nn.Module]:
    size = preprocessing.img_size
    return [v2.Resize(size, BICUBIC), v2.CenterCrop(size)]


def none(preprocessing: Preprocessing) -> list[nn.Module]:
    """Only resized and cropped."""
    return _fit(preprocessing)


def digits(preprocessing: Preprocessing) -> list[nn.Module]:
    """Slightly moved, turned and scaled; never mirrored, for signs that have a right way round."""
    move = v2.RandomAffine(
        degrees=12, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR
    )
    return [*_fit(preprocessing), move]


def small(preprocessing: Preprocessing) -> list[nn.Module]:
    """Shifted by up to an eighth and mirrored, for small pictures that fill their frame."""
    size = preprocessing.img_size
    return [
        *_fit(preprocessing),
        v2.RandomCrop(size, padding=max(1, size // 8)),
        v2.RandomHorizontalFlip(),
    ]


def photos(preprocessing: Preprocessing) -> list[nn.Module]:
    """Random crop, mirrored, and RandAugment (Cubuk et al., 2020), for photographs."""
    return [
        v2.RandomResizedCrop(preprocessing.img_size, scale=(0.35, 1.0), interpolation=BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(num_ops=2, magnitude=7),
    ]


def signs(preprocessing: Preprocessing) -> list[nn.Module]:
    """Random crop and RandAugment without mirroring, for photographs of signs."""
    return [
        v2.RandomResizedCrop(preprocessing.img_size, scale=(0.6, 1.0), interpolation=BICUBIC),
        v2.RandAugment(num_ops=2, magnitude=7),
    ]


POLICIES = {policy.__name__: policy for policy in (none, digits, small, photos, signs)}


def make_augmentation(policy: str, preprocessing: Preprocessing) -> v2.Compose:
    """A callable from a picture to a normalised (C, S, S) tensor, by the policy's name."""
    return v2.Compose(
        [preprocessing.convert, *POLICIES[policy](preprocessing), preprocessing.normalise]
    )
