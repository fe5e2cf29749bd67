"""The conversion of a picture to a tensor, shared by training, evaluation and prediction."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from kansformer.data.images import DEFAULT_LEVELS, Levels, Source, open_image
from models.plain import plain_fields

Statistics = float | Sequence[float]
# means and standard deviations by which pretrained models expect pixel values to be normalized
STATISTICS: dict[str, tuple[Statistics, Statistics]] = {
    "half": (0.5, 0.5),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, center crop, scale to [0, 1] and normalize; stored in the weights file.

    The shorter side becomes img_size / crop_pct pixels, of which the central img_size square is
    kept. `mean` and `std` are one number, or one per channel. `levels` holds the (black, white)
    levels of training pictures with more than 8 bits (`images.Levels`); empty if there were none.
    """

    img_size: int
    in_chans: int = 3
    mean: Statistics = 0.5
    std: Statistics = 0.5
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    levels: Levels = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("mean", "std"):  # JSON has lists only
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, name, tuple(value))
                if len(value) != self.in_chans:
                    raise ValueError(f"{name} has {len(value)} numbers, not one per channel")
        for name in ("img_size", "in_chans", "mean", "std", "crop_pct"):
            value = getattr(self, name)
            kinds: tuple[type, ...] = (int,) if name in ("img_size", "in_chans") else (int, float)
            for number in value if isinstance(value, tuple) else (value,):
                good = isinstance(number, kinds) and not isinstance(number, bool)
                if not good or not math.isfinite(number):
                    raise ValueError(f"{name} must be a number, not {value!r}")
        if not (self.img_size > 0 and self.in_chans in (1, 3)):
            raise ValueError(f"no pictures have size {self.img_size} and {self.in_chans} channels")
        std = self.std if isinstance(self.std, tuple) else (self.std,)
        if not (min(std) > 0 and 0.1 <= self.crop_pct <= 1):
            raise ValueError(f"std {self.std} or crop_pct {self.crop_pct} is out of bounds")
        InterpolationMode(self.interpolation)  # raises a ValueError for an unknown mode
        object.__setattr__(self, "levels", checked_levels(self.levels))

    def __call__(self, image: Image.Image) -> Tensor:
        """Converts a picture of any mode and orientation to (in_chans, img_size, img_size)."""
        return self.normalize(self.fit(self.convert(image)))

    def open(
        self, source: Source, name: str | None = None, at_least: int | None = None
    ) -> Image.Image:
        """Opens a picture by `open_image`, with these levels; mode "L" or "RGB"."""
        return open_image(source, name, at_least, self.levels)

    def convert(self, image: Image.Image) -> Image.Image:
        """The picture upright, in 8 bits and with the model's number of channels."""
        return self.open(image).convert("L" if self.in_chans == 1 else "RGB")

    def fit(self, image: Image.Image) -> Image.Image:
        """The picture resized and center-cropped to the model's input size."""
        size = round(self.img_size / self.crop_pct)
        short = min(image.size)
        if max(image.size) > 8 * short:  # resizing a long thin picture whole could fill the memory
            image = TF.center_crop(image, [min(side, 8 * short) for side in image.size[::-1]])
        if short != size:
            image = TF.resize(image, [size], InterpolationMode(self.interpolation))
        return TF.center_crop(image, [self.img_size, self.img_size])

    def normalize(self, image: Image.Image) -> Tensor:
        """A resized picture as a normalized float32 tensor, (in_chans, H, W)."""
        pixels = TF.to_dtype(TF.pil_to_tensor(image), torch.float32, scale=True)
        return (pixels - _per_channel(self.mean)) / _per_channel(self.std)

    def denormalize(self, tensor: Tensor) -> Image.Image:
        """The inverse of `normalize`: a picture of a tensor (in_chans, H, W), colors clipped."""
        pixels = tensor.cpu() * _per_channel(self.std) + _per_channel(self.mean)
        return TF.to_pil_image(TF.to_dtype(pixels.clamp(0, 1), torch.uint8, scale=True))

    def for_input(self, img_size: int, in_chans: int) -> "Preprocessing":
        """The preprocessing for another input size; one channel gets the mean of the three.

        Raises:
            ValueError: statistics per channel cannot be converted to `in_chans` channels.
        """
        mean, std = self.mean, self.std
        if in_chans == 1:
            mean, std = _mean(mean), _mean(std)
        elif in_chans != self.in_chans and isinstance(mean, tuple):
            raise ValueError(f"mean and std are for {self.in_chans} channels, not {in_chans}")
        return replace(self, img_size=img_size, in_chans=in_chans, mean=mean, std=std)

    def with_statistics(self, name: str) -> "Preprocessing":
        """A copy with the mean and standard deviation of this name in `STATISTICS`."""
        mean, std = STATISTICS[name]
        if self.in_chans == 1:
            mean, std = _mean(mean), _mean(std)
        return replace(self, mean=mean, std=std)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as stored in the weights file."""
        return asdict(self)


def checked_levels(levels: Levels) -> dict[str, tuple[float, float]]:
    """Validated levels, which may come from a file.

    Raises:
        ValueError: a mode is not in `DEFAULT_LEVELS`, or black is not below white.
    """
    checked = {}
    for mode, pair in dict(levels).items():
        black, white = map(float, pair)
        if mode not in DEFAULT_LEVELS or not -math.inf < black < white < math.inf:
            raise ValueError(f"levels {pair!r} of mode {mode!r} are out of bounds")
        checked[mode] = black, white
    return checked


def _per_channel(value: Statistics) -> float | Tensor:
    """A single number, or a tensor (C, 1, 1) of one per channel."""
    return value if isinstance(value, int | float) else torch.tensor(value)[:, None, None]


def _mean(value: Statistics) -> float:
    return value if isinstance(value, int | float) else sum(value) / len(value)
