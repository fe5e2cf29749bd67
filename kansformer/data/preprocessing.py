"""The one way from a picture to a tensor, shared by training, evaluation and prediction."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1] and normalise; travels in the weights file.

    The shorter side becomes img_size / crop_pct, and the middle img_size square is kept.
    """

    img_size: int
    in_chans: int = 3
    mean: float = 0.5
    std: float = 0.5
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        sizes = {"img_size": self.img_size, "in_chans": self.in_chans}
        numbers = {"mean": self.mean, "std": self.std, "crop_pct": self.crop_pct}
        for name, value in {**sizes, **numbers}.items():
            kinds: tuple[type, ...] = (int,) if name in sizes else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
                raise ValueError(f"{name} must be a number, not {value!r}")
        if not (self.img_size > 0 and self.in_chans in (1, 3)):
            raise ValueError(f"no pictures have size {self.img_size} and {self.in_chans} channels")
        if not (self.std > 0 and 0.1 <= self.crop_pct <= 1):
            raise ValueError(f"std {self.std} or crop_pct {self.crop_pct} is out of bounds")
        InterpolationMode(self.interpolation)  # a ValueError if there is no such mode

    def __call__(self, image: Image.Image) -> Tensor:
        """(in_chans, img_size, img_size) float32."""
        return self.normalise(self.fit(self.convert(image)))

    def convert(self, image: Image.Image) -> Image.Image:
        """The picture in the model's number of channels."""
        return image.convert("L" if self.in_chans == 1 else "RGB")

    def fit(self, image: Image.Image) -> Image.Image:
        """The picture's middle, resized to the model's size."""
        size = round(self.img_size / self.crop_pct)
        short = min(image.size)
        if max(image.size) > 8 * short:  # far more than the middle: enlarged, it fills the memory
            image = TF.center_crop(image, [min(side, 8 * short) for side in image.size[::-1]])
        if short != size:
            image = TF.resize(image, [size], InterpolationMode(self.interpolation))
        return TF.center_crop(image, [self.img_size, self.img_size])

    def normalise(self, image: Image.Image) -> Tensor:
        """A picture of the right size as a tensor, (in_chans, H, W)."""
        pixels = TF.to_dtype(TF.pil_to_tensor(image), torch.float32, scale=True)
        return (pixels - self.mean) / self.std

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in the weights file."""
        return asdict(self)
