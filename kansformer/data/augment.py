"""Augmentation policies: what may happen to a training picture without changing its class."""

from collections.abc import Callable
from typing import Any

from torchvision.transforms import InterpolationMode, v2

from kansformer.data.preprocessing import Preprocessing

Step = Callable[[Any], Any]
BICUBIC = InterpolationMode.BICUBIC


def none(preprocessing: Preprocessing) -> list[Step]:
    """Only resized and cropped."""
    return [preprocessing.fit]


def digits(preprocessing: Preprocessing) -> list[Step]:
    """Slightly moved, turned and scaled; never mirrored, for signs that have a right way round."""
    move = v2.RandomAffine(
        degrees=12, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR
    )
    return [preprocessing.fit, move]


def mirror(preprocessing: Preprocessing) -> list[Step]:
    """Mirrored, for small pictures that are centred: a shift costs more than it teaches there."""
    return [preprocessing.fit, v2.RandomHorizontalFlip()]


def small(preprocessing: Preprocessing) -> list[Step]:
    """Shifted by up to a fourteenth and mirrored, for small pictures that fill their frame."""
    size = preprocessing.img_size
    return [
        preprocessing.fit,
        v2.RandomCrop(size, padding=max(1, size // 14)),
        v2.RandomHorizontalFlip(),
    ]


def photos(preprocessing: Preprocessing) -> list[Step]:
    """Random crop, mirrored, and RandAugment (Cubuk et al., 2020), for photographs."""
    return [
        v2.RandomResizedCrop(preprocessing.img_size, scale=(0.35, 1.0), interpolation=BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(num_ops=2, magnitude=7),
    ]


def signs(preprocessing: Preprocessing) -> list[Step]:
    """Random crop and RandAugment without mirroring, for photographs of signs."""
    return [
        v2.RandomResizedCrop(preprocessing.img_size, scale=(0.6, 1.0), interpolation=BICUBIC),
        v2.RandAugment(num_ops=2, magnitude=7),
    ]


def mirrors(policy: str) -> bool:
    """Whether a policy, by its name, shows mirrored pictures; False for an unknown one."""
    if policy not in POLICIES:
        return False
    steps = POLICIES[policy](Preprocessing(img_size=224))
    return any(isinstance(step, v2.RandomHorizontalFlip) for step in steps)


POLICIES = {policy.__name__: policy for policy in (none, digits, mirror, small, photos, signs)}


def make_augmentation(policy: str, preprocessing: Preprocessing) -> v2.Compose:
    """A callable from a picture to a normalised (C, S, S) tensor, by the policy's name."""
    return v2.Compose(
        [preprocessing.convert, *POLICIES[policy](preprocessing), preprocessing.normalise]
    )
