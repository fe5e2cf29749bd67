"""The Vision Transformer (Dosovitskiy et al., 2021) with a choice of feed-forward block.

Parameter names are timm's, so a state dict of a timm ViT loads as it is, with or without
LayerScale, registers, distillation token and mean pooling. `ViTConfig` holds everything needed to
rebuild the model and is stored in the weights file.
"""

import math
import re
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, LayerScale, Mlp, PatchEmbed, trunc_normal_
from torch import Tensor, nn

from .kan import BASE_ACTIVATIONS, INITS, GroupKANLinear, KANFeedForward, KANLinear
from .plain import plain_fields

FFNS = ("kan", "group-kan", "mlp")
HEADS = ("linear", "kan")
POOLS = ("token", "avg", "both")
STEMS = ("patch", "conv")
# Settings of a feed-forward block that starts as the MLP it replaces.
LIKE_MLP: dict[str, Any] = {
    "base_activation": ("identity", "gelu"),
    "kan_bias": True,
    "kan_norm": False,
}
# What a choice of feed-forward block implies for other fields, unless they are given.
FFN_SETTINGS: dict[str, dict[str, Any]] = {
    "kan": {},
    "group-kan": {**LIKE_MLP, "grid_size": 8, "grid_range": (-4.0, 4.0)},
    "mlp": {},
}


@dataclass(frozen=True)
class ViTConfig:
    """Everything that shapes a `VisionTransformer`.

    Raises:
        ValueError: a value that no model can be built from; the message names the field.
    """

    img_size: int = 224  # pixels, square
    patch_size: int = 16
    in_chans: int = 3
    stem: str = "patch"  # how a patch becomes a token: one linear map, or "conv", see `ConvStem`
    num_classes: int = 1000  # 0: no head, the model gives the pooled features
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0  # hidden width of "mlp" and "group-kan" blocks, in units of embed_dim
    ffn: str = "kan"
    kan_hidden: int | str = 64  # hidden width of the "kan" block; "full": as wide as the MLP's
    hidden_widths: tuple[int, ...] | None = None  # of each block, where surgery has changed them
    kan_norm: bool = True  # a LayerNorm between the two KAN layers of a block
    kan_bias: bool = False  # biases in KAN layers
    kan_init: str = "variance"  # how splines on edges start, one of models.kan.INITS
    groups: int = 8  # splines per layer of a "group-kan" block
    head: str = "linear"
    head_hidden: int = 64  # hidden width of the "kan" head
    grid_size: int = 5
    grid_sizes: tuple[int, ...] | None = None  # of each block, where surgery has changed them
    spline_order: int = 3
    grid_range: tuple[float, float] = (-3.0, 3.0)  # spans the N(0, 1) behind a LayerNorm
    base_activation: str | tuple[str, str] = "silu"  # or one for each of a block's two layers
    drop_rate: float = 0.0  # dropout on FFN outputs and before the head
    drop_path_rate: float = 0.0  # stochastic depth, rising linearly to this in the last block
    norm_eps: float = 1e-6  # of the LayerNorms around attention and FFN, and of the last
    qkv_bias: bool = True
    layer_scale: float | None = None  # factor per channel on each branch, from this (CaiT)
    class_token: bool = True
    distilled: bool = False  # a second class token with a second head (DeiT)
    reg_tokens: int = 0  # register tokens (Darcet et al., 2024)
    no_embed_class: bool = False  # only patches have positions, the tokens before them have none
    # what the head sees: the class token, "avg", the patches' mean, or "both", side by side
    pool: str = "token"
    fc_norm: bool = False  # the last norm acts on what the head sees, not on all tokens
    pre_logits: bool = False  # tanh of a linear layer before the head (ViT's ImageNet-21k models)

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "grid_range", tuple(self.grid_range))
        if isinstance(self.base_activation, list):  # as JSON has it
            object.__setattr__(self, "base_activation", tuple(self.base_activation))
        for name in ("hidden_widths", "grid_sizes"):
            self._check_block_sizes(name)
        sizes = ("img_size patch_size in_chans embed_dim depth num_heads"
                 " head_hidden groups grid_size").split()  # fmt: skip
        for name in (*sizes, "num_classes", "reg_tokens"):
            value, least = getattr(self, name), int(name in sizes)
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, not {value!r}"
                )
        if self.img_size % self.patch_size:
            raise ValueError(
                f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.stem == "conv" and self.patch_size & (self.patch_size - 1):
            raise ValueError(f"stem conv needs a power of 2 as patch_size, not {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if self.kan_hidden != "full" and not (
            isinstance(self.kan_hidden, int) and self.kan_hidden > 0
        ):
            raise ValueError(f'kan_hidden must be a number or "full", not {self.kan_hidden!r}')
        for name, known in (
            ("ffn", FFNS), ("head", HEADS), ("pool", POOLS), ("kan_init", INITS), ("stem", STEMS)
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        if not all(name in BASE_ACTIVATIONS for name in self.base_activations):
            raise ValueError(
                f"base_activation must be one or two of {tuple(BASE_ACTIVATIONS)}, not"
                f" {self.base_activation!r}"
            )
        for name, low, high in (
            ("spline_order", 0, 20), ("mlp_ratio", 0, 1000),
            ("drop_rate", 0, 1), ("drop_path_rate", 0, 1), ("norm_eps", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value < high:
                raise ValueError(f"{name} must be in [{low}, {high}), not {value!r}")
        switches = "kan_norm kan_bias qkv_bias class_token distilled no_embed_class fc_norm"
        for name in (*switches.split(), "pre_logits"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if not (self.layer_scale is None or isinstance(self.layer_scale, int | float)):
            raise ValueError(f"layer_scale must be a number or None, not {self.layer_scale!r}")
        if self.pool != "avg" and not self.class_token:
            raise ValueError('without a class_token, pool must be "avg"')
        if self.pool == "both" and (self.fc_norm or self.pre_logits):
            raise ValueError('pool="both" goes without fc_norm and pre_logits')
        if self.distilled and not self.class_token:
            raise ValueError("distilled needs a class_token too")
        if self.distilled and (self.pool != "token" or self.fc_norm or self.pre_logits):
            raise ValueError('distilled goes with pool="token", without fc_norm and pre_logits')
        if self.mlp_hidden < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves no hidden units")
        widths = (self.embed_dim, self.mlp_hidden, *(self.hidden_widths or ()))
        if self.ffn == "group-kan" and any(width % self.groups for width in widths):
            raise ValueError(
                f"widths {' and '.join(map(str, widths))} do not divide into {self.groups} groups"
            )
        if len(self.grid_range) != 2 or not self.grid_range[0] < self.grid_range[1]:
            raise ValueError(f"grid_range must be (low, high), not {self.grid_range}")

    def _check_block_sizes(self, name: str) -> None:
        """Makes a list, as JSON has it, a tuple; it must hold a size for each block."""
        sizes = getattr(self, name)
        if sizes is None:
            return
        good = isinstance(sizes, list | tuple) and all(
            isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes
        )
        if not good or len(sizes) != self.depth:
            raise ValueError(f"{name} must hold a number for each of {self.depth} blocks")
        object.__setattr__(self, name, tuple(sizes))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in the weights file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ViTConfig":
        """The inverse of `to_dict`; an unknown name is a ValueError."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown model settings: {', '.join(sorted(unknown))}")
        return cls(**values)

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the MLP block."""
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def base_activations(self) -> tuple[str, str]:
        """Base activation of a block's first and of its second KAN layer."""
        pair = self.base_activation
        first, second = (pair, pair) if isinstance(pair, str) else pair
        return first, second

    @property
    def ffn_hidden(self) -> int:
        """Hidden width of the feed-forward blocks, of whatever kind, before any surgery."""
        if self.ffn == "kan" and self.kan_hidden != "full":
            return int(self.kan_hidden)
        return self.mlp_hidden

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Hidden width of the feed-forward block of each transformer block."""
        return self.hidden_widths or (self.ffn_hidden,) * self.depth

    @property
    def block_grids(self) -> tuple[int, ...]:
        """Intervals of the grids of each block."""
        return self.grid_sizes or (self.grid_size,) * self.depth

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches'."""
        return self.class_token + self.distilled + self.reg_tokens

    @property
    def grid_tokens(self) -> int:
        """Number of patches."""
        return (self.img_size // self.patch_size) ** 2

    @property
    def head_inputs(self) -> int:
        """Features that the head sees."""
        return self.embed_dim * (2 if self.pool == "both" else 1)

    @property
    def branch_scale(self) -> float:
        """Factor on the last weights of each residual branch at the start: 1 / √(2·depth).

        Branches keep the variance of their input, so with this factor all of them together add
        about the variance of the stream that they are added to (GPT-2).
        """
        return 1 / math.sqrt(2 * self.depth)


def starts_as_mlp(config: ViTConfig) -> bool:
    """Whether the KAN blocks are MLPs while their splines are zero."""
    wide = config.ffn == "group-kan" or (config.ffn == "kan" and config.kan_hidden == "full")
    return wide and all(getattr(config, name) == value for name, value in LIKE_MLP.items())


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, D / heads)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then the feed-forward block, (B, N, D) -> same."""

    def __init__(self, config: ViTConfig, drop_path: float, number: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.attn = Attention(config.embed_dim, config.num_heads, config.qkv_bias)
        self.ls1 = make_layer_scale(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.mlp = make_ffn(config, number)
        self.ls2 = make_layer_scale(config)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

        self.apply(_init_linear)
        for weight in self.attn.qkv.weight.chunk(3):  # three matrices in one
            nn.init.xavier_uniform_(weight)
        self.attn.proj.weight.data *= config.branch_scale
        if config.ffn != "kan":  # a KANLinear has the factor already
            self.get_parameter("mlp.fc2.weight").data *= config.branch_scale

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


def make_layer_scale(config: ViTConfig) -> nn.Module:
    """A factor per channel, (..., D) -> same, if the config has it."""
    if config.layer_scale is None:
        return nn.Identity()
    return LayerScale(config.embed_dim, init_values=config.layer_scale)


def make_ffn(config: ViTConfig, number: int = 0) -> nn.Module:
    """The feed-forward block of the transformer block with that number."""
    hidden = config.block_widths[number]
    if config.ffn == "mlp":
        return Mlp(config.embed_dim, hidden, drop=config.drop_rate)
    kind: dict[str, Any] = {"output_scale": config.branch_scale}
    if config.ffn == "group-kan":  # whose weights `Block` draws, as those of an MLP
        kind = {"groups": config.groups}
    widths = (config.embed_dim, hidden, config.embed_dim)
    return _kan_feed_forward(config, widths, config.block_grids[number], **kind)


def make_head(config: ViTConfig) -> nn.Module:
    """The classifier that the config names, (B, head_inputs) -> (B, num_classes).

    The identity if there are no classes.
    """
    if not config.num_classes:
        return nn.Identity()
    if config.head == "linear":
        return nn.Linear(config.head_inputs, config.num_classes)
    widths = (config.head_inputs, config.head_hidden, config.num_classes)
    return _kan_feed_forward(config, widths, config.grid_size)


def _kan_feed_forward(
    config: ViTConfig, widths: tuple[int, int, int], grid_size: int, **options: Any
) -> KANFeedForward:
    """A KAN of two layers with these numbers of inputs, hidden units and outputs."""
    first, second = (BASE_ACTIVATIONS[name] for name in config.base_activations)
    return KANFeedForward(
        *widths,
        norm=config.kan_norm,
        grid_size=grid_size,
        spline_order=config.spline_order,
        grid_range=config.grid_range,
        base_activation=(first, second),
        bias=config.kan_bias,
        drop=config.drop_rate,
        init=config.kan_init,
        **options,
    )


class ConvStem(nn.Module):
    """Tokens of overlapping patches, by convolutions that each halve the picture.

    Small data sets gain much by it, since neighboring pixels need not be learned to belong
    together. Xiao et al., "Early convolutions help transformers see better" (2021), with LayerNorm
    for BatchNorm, so that a picture's tokens do not depend on the batch.

    Args:
        img_size: side of the pictures, pixels.
        patch_size: pixels per token, a power of 2.
        in_chans: of the pictures.
        dim: of the tokens.

    Shapes: (B, in_chans, S, S) -> (B, (S / patch_size)², dim).
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.img_size = img_size
        layers: list[nn.Module] = []
        width, halvings = in_chans, patch_size.bit_length() - 1
        for still in reversed(range(halvings)):
            before, width = width, max(dim >> still, 8)
            layers += [nn.Conv2d(before, width, 3, 2, 1), LayerNorm2d(width), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(f"pictures of {tuple(x.shape[-2:])}, not of {self.img_size} pixels")
        return self.layers(x).flatten(2).mT


class VisionTransformer(nn.Module):
    """Patches, a class token and perhaps others, `depth` blocks and a head.

    Shapes: (B, in_chans, img_size, img_size) -> logits (B, num_classes), or the pooled features
    (B, head_inputs) if there are no classes.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.patch_embed: nn.Module = (
            ConvStem(config.img_size, config.patch_size, config.in_chans, dim)
            if config.stem == "conv"
            else PatchEmbed(config.img_size, config.patch_size, config.in_chans, dim)
        )

        def tokens(count: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(1, count, dim)) if count else None

        self.cls_token = tokens(config.class_token)
        self.dist_token = tokens(config.distilled)
        self.reg_token = tokens(config.reg_tokens)
        embedded = 0 if config.no_embed_class else config.prefix_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, embedded + config.grid_tokens, dim))
        last = max(config.depth - 1, 1)
        self.blocks = nn.Sequential(
            *(Block(config, config.drop_path_rate * i / last, i) for i in range(config.depth))
        )
        norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.norm = nn.Identity() if config.fc_norm else norm
        self.fc_norm = norm if config.fc_norm else nn.Identity()
        self.pre_logits = (
            nn.Sequential(OrderedDict(fc=nn.Linear(dim, dim), act=nn.Tanh()))
            if config.pre_logits
            else nn.Identity()
        )
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = make_head(config)
        self.head_dist = make_head(config) if config.distilled else None

        # Position embeddings about as large as patch embeddings: with ViT's 0.02 a small model
        # spends many epochs on growing them (digits, 5 epochs: 50 % against 84 % in validation).
        trunc_normal_(self.pos_embed, std=0.2)
        for token in (self.cls_token, self.dist_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        for part in (self.head, self.head_dist, self.pre_logits):
            if part is not None:
                part.apply(_init_linear)

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalized tokens: (B, C, H, W) -> (B, prefix + patches, D).

        The class, distillation and register tokens that the config has come first. With `fc_norm`,
        which normalizes after the pooling, the tokens are not normalized.
        """
        return self.norm(self.blocks(self.embed(x)))

    def embed(self, x: Tensor) -> Tensor:
        """What enters the first block: (B, C, H, W) -> (B, prefix + patches, D)."""
        x = self.patch_embed(x)  # (B, patches, D)
        if self.config.no_embed_class:
            return self._with_prefix(x + self.pos_embed)
        return self._with_prefix(x) + self.pos_embed

    def _with_prefix(self, x: Tensor) -> Tensor:
        """Puts the other tokens first, (B, patches, D) -> (B, prefix + patches, D)."""
        prefix = (self.cls_token, self.dist_token, self.reg_token)
        tokens = [token.expand(x.shape[0], -1, -1) for token in prefix if token is not None]
        return torch.cat([*tokens, x], dim=1)

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits from normalized tokens: (B, N, D) -> (B, num_classes).

        A distilled model gives the mean of its two heads.
        """
        if self.head_dist is not None:
            logits = self.head(self.head_drop(x[:, 0]))
            return (logits + self.head_dist(self.head_drop(x[:, 1]))) / 2
        return self.head(self.head_drop(self.pre_logits(self.fc_norm(self.pooled(x)))))

    def pooled(self, x: Tensor) -> Tensor:
        """What the config's `pool` takes of the tokens: (B, N, D) -> (B, head_inputs)."""
        if self.config.pool == "token":
            return x[:, 0]
        mean = x[:, self.config.prefix_tokens :].mean(dim=1)
        return mean if self.config.pool == "avg" else torch.cat([x[:, 0], mean], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int, pool: str | None = None) -> None:
        """Replaces the head by a fresh one on the model's device, as timm's function of that name.

        Args:
            num_classes: 0 for none.
            pool: what the head sees, as in `ViTConfig`; None leaves it as it is.

        Raises:
            ValueError: the model does not allow that pooling.
        """
        self.config = replace(
            self.config, num_classes=num_classes, pool=self.config.pool if pool is None else pool
        )
        self.head = make_head(self.config)
        self.head_dist = make_head(self.config) if self.config.distilled else None
        for head in (self.head, self.head_dist):
            if head is not None:
                head.apply(_init_linear).to(self.pos_embed.device).train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are exempt from weight decay.

        Vectors (norms, biases) are exempt by their shape; splines are functions whose
        coefficients have no reason to be small, although they are 2- and 3-D.
        """
        names = {"pos_embed", "cls_token", "dist_token", "reg_token"}
        names &= {name for name, _ in self.named_parameters()}
        for name, module in self.named_modules():
            if isinstance(module, KANLinear):
                names |= {f"{name}.spline_weight", f"{name}.spline_scaler"}
            elif isinstance(module, GroupKANLinear):
                names.add(f"{name}.spline_weight")
        return names


def _init_linear(module: nn.Module) -> None:
    """Xavier's uniform weights and zero biases, as in the first ViT."""
    if isinstance(module, nn.Linear | GroupKANLinear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# embed_dim, depth, num_heads, kan_hidden: a KAN block this wide has about as many parameters as
# the MLP block (a KAN edge has ten, with a grid of 5 cubic intervals)
SIZES = {
    "micro": (96, 4, 3, 32),
    "tiny": (192, 12, 3, 64),
    "small": (384, 12, 6, 128),
    "base": (768, 12, 12, 256),
    "large": (1024, 24, 16, 344),
    "huge": (1280, 32, 16, 432),
}
_NAME = re.compile(
    rf"(?P<family>kansformer|vit)_(?P<size>{'|'.join(SIZES)})"
    r"(_patch(?P<patch>\d+))?(_(?P<img>\d+))?(?P<in21k>_in21k)?"
)


def model_config(name: str, **config: Any) -> ViTConfig:
    """The `ViTConfig` that a model name stands for, with any field overridden.

    A name is `{kansformer,vit}_{micro,tiny,small,base,large,huge}`, then `_patchP` (16 if left
    out) and `_S`, the image size (224): `kansformer_tiny_patch4_32`. `_in21k` at the end stands
    for the 21,843 classes of ImageNet-21k.

    Raises:
        ValueError: an unknown name or field, or a value that no model can be built from.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown model {name!r}; names look like kansformer_tiny_patch16_224 or"
            f" vit_base_patch16_224, with sizes {', '.join(SIZES)}"
        )
    embed_dim, depth, num_heads, kan_hidden = SIZES[match["size"]]
    unknown = set(config) - {field.name for field in fields(ViTConfig)}
    if unknown:
        raise ValueError(f"unknown model settings: {', '.join(sorted(unknown))}")
    ffn = config.get("ffn", "kan" if match["family"] == "kansformer" else "mlp")
    preset = ViTConfig(
        img_size=int(match["img"] or 224),
        patch_size=int(match["patch"] or 16),
        num_classes=21843 if match["in21k"] else 1000,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        kan_hidden=kan_hidden,
    )
    return replace(preset, **{"ffn": ffn, **FFN_SETTINGS.get(ffn, {}), **config})


def create_model(name: str, **config: Any) -> VisionTransformer:
    """A freshly initialized model by name; see `model_config` for names and errors."""
    return VisionTransformer(model_config(name, **config))
