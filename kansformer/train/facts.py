"""What can be said of a model and of the program before any training."""

import platform
from importlib.metadata import version

from kansformer.words import number
from models.twins import count_parameters
from models.vit_model import VisionTransformer


def describe(model: VisionTransformer) -> str:
    """The model in one line."""
    config = model.config
    tokens = (config.img_size // config.patch_size) ** 2
    return (
        f"{config.ffn} ViT, {number(config.depth, 'block')} of {config.embed_dim},"
        f" {number(tokens, 'patch')} of {config.patch_size}x{config.patch_size}x{config.in_chans},"
        f" {count_parameters(model):,} parameters"
    )


def versions() -> dict[str, str]:
    """Versions of what a run's figures depend on."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
