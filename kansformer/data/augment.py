"""Augmentation policies: what may happen to a training picture without changing its class."""

import math
from collections.abc import Callable
from typing import Any

from torchvision.transforms import InterpolationMode, v2

from kansformer.data.preprocessing import Preprocessing

Step = Callable[[Any], Any]
BICUBIC = InterpolationMode.BICUBIC
CROPS = {"photos": 0.35, "signs": 0.6}  # smallest share of the picture's area that is cropped


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
    """Whether a policy, by its name, shows mirrored pictures; False for an unknown one."""
    if policy not in POLICIES:
        return False
    steps = POLICIES[policy](Preprocessing(img_size=224))
    return any(isinstance(step, v2.RandomHorizontalFlip) for step in steps)


POLICIES = {policy.__name__: policy for policy in (none, digits, mirror, small, photos, signs)}


def make_augmentation(
    policy: str, preprocessing: Preprocessing, random_erasing: float = 0.0
) -> v2.Compose:
    """A callable from a picture to a normalised (C, S, S) tensor, by the policy's name.

    Args:
        random_erasing: share of the pictures of which a rectangle is set to the mean (Zhong et al.,
            2017).
    """
    steps = [preprocessing.convert, *POLICIES[policy](preprocessing), preprocessing.normalise]
    return v2.Compose([*steps, v2.RandomErasing(random_erasing)] if random_erasing else steps)


def least_side(policy: str, preprocessing: Preprocessing) -> int:
    """Pixels that a picture's shorter side needs so that the policy enlarges nothing.

    A random crop has at least the policy's share of the area, and sides as 3 to 4 at the most.
    """
    if policy in CROPS:
        return math.ceil(preprocessing.img_size / math.sqrt(CROPS[policy] * 3 / 4))
    return round(preprocessing.img_size / preprocessing.crop_pct)
