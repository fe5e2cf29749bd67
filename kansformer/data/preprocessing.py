"""The one way from a picture to a tensor, shared by training, evaluation and prediction."""

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

    def __call__(self, image: Image.Image) -> Tensor:
        """(in_chans, img_size, img_size) float32."""
        image = self.convert(image)
        size = round(self.img_size / self.crop_pct)
        if min(image.size) != size:
            image = TF.resize(image, [size], InterpolationMode(self.interpolation))
        if image.size != (self.img_size, self.img_size):
            image = TF.center_crop(image, [self.img_size, self.img_size])
        return self.normalise(image)

    def convert(self, image: Image.Image) -> Image.Image:
        """The picture in the model's number of channels."""
        return image.convert("L" if self.in_chans == 1 else "RGB")

    def normalise(self, image: Image.Image) -> Tensor:
        """A picture of the right size as a tensor, (in_chans, H, W)."""
        pixels = TF.to_dtype(TF.pil_to_tensor(image), torch.float32, scale=True)
        return (pixels - self.mean) / self.std

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in the weights file."""
        return asdict(self)
