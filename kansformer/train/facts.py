"""What can be said of a model and of the program before any training."""

import platform
from importlib.metadata import version

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.vit_model import VisionTransformer


def count_parameters(model: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_flops(model: VisionTransformer) -> int:
    """Floating point operations of the matrix products for one picture, two per multiply-add."""
    config = model.config
    device = next(model.parameters()).device
    picture = torch.zeros(1, config.in_chans, config.img_size, config.img_size, device=device)
    was_training = model.training
    # the counter does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(picture)
    model.train(was_training)
    return counter.get_total_flops()


def describe(model: VisionTransformer) -> str:
    """The model in one line."""
    config = model.config
    tokens = (config.img_size // config.patch_size) ** 2
    return (
        f"{config.ffn} ViT, {config.depth} blocks of {config.embed_dim}, {tokens} patches of"
        f" {config.patch_size}x{config.patch_size}x{config.in_chans},"
        f" {count_parameters(model):,} parameters"
    )


def versions() -> dict[str, str]:
    """Versions of what a run's figures depend on."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
