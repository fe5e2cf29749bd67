"""Where in a picture a Vision Transformer looks: attention rollout and gradients.

The model itself runs unchanged; hooks record queries and keys, and attention is computed from them
a second time.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kansformer.checkpoint import TrainedModel
from kansformer.data.images import Source
from kansformer.figures import color_map
from models.vit_model import Attention, VisionTransformer

OVERLAY_PIXELS = 336  # least shorter side of an overlay, pixels
MAX_VIEW = 1024  # largest side of an overlay of a large picture, pixels


@torch.no_grad()
def attention_rollout(model: VisionTransformer, images: Tensor) -> Tensor:
    """How much of each patch reaches the input of the head, through attention and skip connections.

    The product over the blocks of (A + 1) / 2, with A the attention averaged over heads (Abnar and
    Zuidema, 2020, "Quantifying attention flow in transformers"). It does not depend on the class.

    Args:
        model: in eval mode.
        images: (B, C, S, S) preprocessed pictures, on the model's device.

    Returns:
        (B, S / patch, S / patch), not negative; the values of each picture sum to one.
    """
    flows: list[Tensor] = []  # (B, N, N) after the latest block: row i, the composition of token i

    def propagate(heads: int, layer: nn.Module, inputs: Any, qkv: Tensor) -> None:
        attention = _attention(qkv, heads)
        mixed = (attention + torch.eye(attention.shape[-1], device=qkv.device)) / 2
        flows[:] = [mixed @ flows[0] if flows else mixed]

    hooks = [
        module.qkv.register_forward_hook(partial(propagate, module.num_heads))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    try:
        model.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    config = model.config
    reads = []  # the tokens that the head reads
    if config.pool != "avg":  # that of a distilled model also reads the second token
        reads.append(slice(0, 1 + config.distilled))
    if config.pool != "token":
        reads.append(slice(config.prefix_tokens, None))
    patches = flows[0][..., config.prefix_tokens :]  # (B, N, patches)
    shares = torch.stack([patches[:, read].mean(dim=1) for read in reads]).sum(dim=0)
    shares = shares / shares.sum(dim=1, keepdim=True)  # (B, patches)
    side = config.img_size // config.patch_size
    return shares.reshape(-1, side, side)


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """Attention averaged over heads, (B, N, 3 D) -> (B, N, N); rows sum to one."""
    B, N, width = qkv.shape
    q, k, _ = qkv.float().reshape(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT * (width // 3 // heads) ** -0.5  # (B, heads, N, N)
    return scores.softmax(dim=-1).mean(dim=1)


def gradient_map(model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
    """How strongly each pixel changes the logit of a class, in either direction.

    The largest absolute gradient over a pixel's channels (Simonyan et al., 2014, "Deep inside
    convolutional networks").

    Args:
        model: in eval mode.
        images: (B, C, S, S) preprocessed pictures, on the model's device.
        targets: (B,) class index for each picture.

    Returns:
        (B, S, S), not negative.
    """
    pixels = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(pixels).gather(1, targets[:, None])
        (gradient,) = torch.autograd.grad(logits.sum(), pixels)
    return gradient.abs().amax(dim=1)


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """Blends a map, scaled to its range and colored, over a picture in grey.

    Args:
        image: the part of the picture that the model sees.
        heat: (h, w), of any size.

    Returns:
        RGB, in the size of the picture, or larger if that is too small to see.
    """
    scale = max(1, -(-OVERLAY_PIXELS // min(image.size)))
    size = (image.width * scale, image.height * scale)
    values = heat.detach().float().cpu()
    values = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    smooth = Image.fromarray(values.numpy()).resize(size, Image.Resampling.BICUBIC)
    # inferno's lightness rises with the value, so that it can be read without color vision
    colors = Image.fromarray(color_map("inferno")(np.asarray(smooth), bytes=True)).convert("RGB")
    grey = image.convert("L").resize(size, Image.Resampling.NEAREST).convert("RGB")
    return Image.blend(grey, colors, 0.6)


def explain(model: TrainedModel, picture: Source) -> Image.Image:
    """Where a model looks in a picture: the overlay of `attention_rollout`, RGB.

    It shows the square that the model sees, at the picture's resolution up to `MAX_VIEW`.

    Args:
        picture: a path, an open file or a PIL image.

    Raises:
        UserError: the picture cannot be read.
    """
    image = model.preprocessing.open(picture)
    batch = model.preprocessing(image)[None].to(model.pos_embed.device)
    heat = attention_rollout(model, batch)[0]
    crop = round(min(image.size) * model.preprocessing.crop_pct)
    side = max(model.preprocessing.img_size, min(crop, MAX_VIEW))
    view = replace(model.preprocessing, img_size=side)
    return overlay(view.fit(view.convert(image)), heat)
