"""Augmentation policies: random transforms that keep a training picture's class."""

import math
from collections.abc import Callable
from typing import Any

from torchvision.transforms import InterpolationMode, v2

from kansformer.data.preprocessing import Preprocessing

Step = Callable[[Any], Any]
BICUBIC = InterpolationMode.BICUBIC
CROPS = {"photos": 0.35, "signs": 0.6}  # smallest share of the picture's area in a random crop


def none(preprocessing: Preprocessing) -> list[Step]:
    """Resize and center crop only."""
    return [preprocessing.fit]


def digits(preprocessing: Preprocessing) -> list[Step]:
    """Small random shifts, rotations and scalings, without mirroring, for written characters."""
    affine = v2.RandomAffine(
        degrees=12, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR
    )
    return [preprocessing.fit, affine]


def mirror(preprocessing: Preprocessing) -> list[Step]:
    """Random mirroring, for small centerd pictures, where random shifts lower the accuracy."""
    return [preprocessing.fit, v2.RandomHorizontalFlip()]


def small(preprocessing: Preprocessing) -> list[Step]:
    """Shifts of up to 1/14 of the side and mirroring, for small pictures that fill their frame."""
    size = preprocessing.img_size
    return [
        preprocessing.fit,
        v2.RandomCrop(size, padding=max(1, size // 14)),
        v2.RandomHorizontalFlip(),
    ]


def photos(preprocessing: Preprocessing) -> list[Step]:
    """Random crop, mirroring and RandAugment (Cubuk et al., 2020), for photographs."""
    return [
        v2.RandomResizedCrop(
            preprocessing.img_size, scale=(CROPS["photos"], 1.0), interpolation=BICUBIC
        ),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(num_ops=2, magnitude=7),
    ]


def signs(preprocessing: Preprocessing) -> list[Step]:
    """Random crop and RandAugment without mirroring, for photographs of signs."""
    return [
        v2.RandomResizedCrop(
            preprocessing.img_size, scale=(CROPS["signs"], 1.0), interpolation=BICUBIC
        ),
        v2.RandAugment(num_ops=2, magnitude=7),
    ]


def mirrors(policy: str) -> bool:
    """Whether the policy of this name mirrors pictures; False for an unknown name."""
    if policy not in POLICIES:
        return False
    steps = POLICIES[policy](Preprocessing(img_size=224))
    return any(isinstance(step, v2.RandomHorizontalFlip) for step in steps)


POLICIES = {policy.__name__: policy for policy in (none, digits, mirror, small, photos, signs)}


def make_augmentation(
    policy: str, preprocessing: Preprocessing, random_erasing: float = 0.0
) -> v2.Compose:
    """The named policy as a callable from a picture to a normalized (C, S, S) tensor.

    Args:
        random_erasing: share of the pictures in which a random rectangle is set to the mean
            (Zhong et al., 2017).
    """
    steps = [preprocessing.convert, *POLICIES[policy](preprocessing), preprocessing.normalize]
    return v2.Compose([*steps, v2.RandomErasing(random_erasing)] if random_erasing else steps)


def least_side(policy: str, preprocessing: Preprocessing) -> int:
    """Length in pixels of a picture's shorter side from which the policy never upsamples.

    A random crop has at least the policy's share of the area and an aspect ratio of at most 4:3.
    """
    if policy in CROPS:
        return math.ceil(preprocessing.img_size / math.sqrt(CROPS[policy] * 3 / 4))
    return round(preprocessing.img_size / preprocessing.crop_pct)
