"""Small random ViTs of other libraries, saved as those libraries save them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.test_kan import efficient_kan_state, textbook

SIZES = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 32, "patch_size": 8}
HF_SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 128,
    "image_size": 32, "patch_size": 8, "mlp_ratio": 2,
}  # fmt: skip


@dataclass
class Reference:
    """A file, and the outputs that its library computes from it."""

    path: Path
    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None
    config: dict[str, Any] = field(default_factory=dict)  # settings that the file does not contain


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Adds noise to every parameter, so that no bias is zero and no norm or scale is one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def timm_vit(path: Path, wrap: str | None = None, **options: Any) -> Reference:
    """timm's ViT, saved as its state dict, under a key if `wrap` is given."""
    model = perturb(TimmViT(**{**SIZES, "num_classes": 5, **options}))
    state = model.state_dict()
    torch.save({wrap: state} if wrap else state, path)
    return _of_timm(path, model)


def _of_timm(path: Path, model: TimmViT) -> Reference:
    return Reference(path, model.forward_features, model if model.num_classes else None)


def deit_distilled(path: Path) -> Reference:
    model = perturb(VisionTransformerDistilled(**SIZES, num_classes=5))
    torch.save({"model": model.state_dict()}, path)
    return _of_timm(path, model)


def deit3(path: Path) -> Reference:
    """DeiT III as published: LayerScale under its old name, no position for the class token."""
    model = perturb(TimmViT(**SIZES, num_classes=5, init_values=1e-4, no_embed_class=True))
    state = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for name, value in model.state_dict().items()
    }
    torch.save({"model": state}, path)
    return _of_timm(path, model)


def dino(path: Path) -> Reference:
    """A DINO training state: student and teacher with projection heads, all under prefixes."""
    model = perturb(TimmViT(**SIZES, num_classes=0))
    teacher = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    teacher |= {"head.mlp.0.weight": torch.randn(8, 64), "head.last_layer.weight_v": torch.ones(3)}
    student = {f"module.{name}": torch.zeros_like(value) for name, value in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, path)
    return _of_timm(path, model)


def dinov2_forward(state: dict[str, Tensor], x: Tensor, heads: int = 1) -> Tensor:
    """DINOv2's published forward pass up to x_norm, from a state dict with its names."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], patch)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    if "register_tokens" in state:
        registers = state["register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
    dim = x.shape[-1]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for block in sorted({n.rsplit(".norm1", 1)[0] for n in state if ".norm1." in n}):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        outputs = []
        for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):  # noqa: B905
            weights = (qh @ kh.transpose(1, 2) / (dim // heads) ** 0.5).softmax(dim=-1)
            outputs.append(weights @ vh)
        y = linear(torch.cat(outputs, dim=-1), f"{block}.attn.proj")
        x = x + y * state[f"{block}.ls1.gamma"]
        y = linear(
            F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2"
        )
        x = x + y * state[f"{block}.ls2.gamma"]
    return norm(x, "norm")


def dinov2(path: Path, registers: int = 0, chunked: bool = False) -> Reference:
    """Facebook's DINOv2: its names, its mask token, and registers without positions."""
    model = perturb(TimmViT(**SIZES, num_classes=0, init_values=1e-5))
    state = {"mask_token": torch.randn(1, 64), **model.state_dict()}
    if registers:
        state["register_tokens"] = torch.randn(1, registers, 64)
    if chunked:
        state = {n.replace("blocks.", "blocks.0."): value for n, value in state.items()}
    torch.save(state, path)
    return Reference(path, lambda x: dinov2_forward(state, x), None)


def mae(path: Path, decoder: bool) -> Reference:
    """MAE's pretraining file: fixed positions, zero for the class token, and perhaps a decoder."""
    model = perturb(TimmViT(**SIZES, num_classes=0))
    angles = torch.arange(16)[:, None] / torch.logspace(0, 4, 32)
    with torch.no_grad():
        model.pos_embed[0, 0] = 0
        model.pos_embed[0, 1:] = torch.cat([angles.sin(), angles.cos()], dim=-1)
    state = model.state_dict()
    if decoder:
        state |= {
            "mask_token": torch.randn(1, 1, 16), "decoder_embed.weight": torch.randn(16, 64),
            "decoder_pos_embed": torch.randn(1, 17, 16),
            "decoder_blocks.0.norm1.weight": torch.randn(16),
            "decoder_norm.bias": torch.randn(16), "decoder_pred.weight": torch.randn(192, 16),
        }  # fmt: skip
    torch.save({"model": state}, path)
    return _of_timm(path, model)


def pre_logits(path: Path) -> Reference:
    """The older trainer's ImageNet-21k files: a tanh layer before the head."""
    model = perturb(TimmViT(**SIZES, num_classes=5))
    fc = perturb(nn.Linear(64, 64))
    state = {**model.state_dict(), **{f"pre_logits.fc.{n}": v for n, v in fc.state_dict().items()}}
    torch.save(state, path)

    def logits(x: Tensor) -> Tensor:
        return model.head(torch.tanh(fc(model.forward_features(x)[:, 0])))

    return Reference(path, model.forward_features, logits)


def torchvision_vit(path: Path, **options: Any) -> Reference:
    model = perturb(
        torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=1, hidden_dim=64, mlp_dim=128,
            num_classes=5, **options,
        )
    )  # fmt: skip
    torch.save(model.state_dict(), path)

    def features(x: Tensor) -> Tensor:
        x = model._process_input(x)
        return model.encoder(torch.cat([model.class_token.expand(len(x), -1, -1), x], dim=1))

    return Reference(path, features, model)


def hugging_face(path: Path, kind: str, *, saved: bool = True, **options: Any) -> Reference:
    """A model of transformers, by the name of its class.

    Args:
        saved: True for save_pretrained, which writes the names of earlier releases and a
            config.json; False for the state dict with the names of this release.
    """
    config = getattr(transformers, kind.split("For")[0].removesuffix("Model") + "Config")
    options = {**HF_SIZES, **options}
    options.setdefault("id2label", {index: f"LABEL_{index}" for index in range(5)})
    model = perturb(getattr(transformers, kind)(config(**options)))
    if saved:
        model.save_pretrained(path.parent)
        path = path.parent / "model.safetensors"
    else:
        save_file({n: v.contiguous() for n, v in model.state_dict().items()}, path)
    body = getattr(model, model.base_model_prefix, model)

    def features(x: Tensor) -> Tensor:
        return body(x).last_hidden_state

    # other classifiers are no heads of a ViT: they use several tokens, or one of two
    has_vit_head = kind in ("ViTForImageClassification", "DeiTForImageClassificationWithTeacher")
    return Reference(path, features, (lambda x: model(x).logits) if has_vit_head else None)


def hf_mae(path: Path) -> Reference:
    """transformers' ViT-MAE with its decoder; nothing is masked, and patches keep their order."""
    small = {f"decoder_{name}": 16 for name in ("hidden_size", "intermediate_size")}
    config = transformers.ViTMAEConfig(
        **HF_SIZES, **small, decoder_num_hidden_layers=1, decoder_num_attention_heads=1,
        mask_ratio=0.0,
    )  # fmt: skip
    model = perturb(transformers.ViTMAEForPreTraining(config))
    model.save_pretrained(path.parent)

    def features(x: Tensor) -> Tensor:
        return model.vit(x, noise=torch.arange(16.0).expand(len(x), -1)).last_hidden_state

    return Reference(path.parent / "model.safetensors", features, None)


def jax(
    path: Path, heads: int = 2, big_vision: bool = False, pre_logits: bool = False, **options: Any
) -> Reference:
    """Arrays with the names of google-research/vision_transformer, read by timm's loader."""
    random = np.random.default_rng(0)
    dim, width, prefix = 64, 64 // heads, "params/" if big_vision else ""

    def array(*shape: int) -> np.ndarray:
        return random.normal(0, 0.15, shape).astype(np.float32)

    arrays = {
        "embedding/kernel": array(8, 8, 3, dim), "embedding/bias": array(dim),
        "cls": array(1, 1, dim), "head/kernel": array(dim, 5), "head/bias": array(5),
        "Transformer/encoder_norm/scale": 1 + array(dim),
        "Transformer/encoder_norm/bias": array(dim),
        ("" if big_vision else "Transformer/posembed_input/") + "pos_embedding": array(1, 17, dim),
    }  # fmt: skip
    attention, mlp, norm2 = (0, 0, 1) if big_vision else (1, 3, 2)
    for block in range(2):
        start = f"Transformer/encoderblock_{block}/"
        for norm in (0, norm2):
            arrays[f"{start}LayerNorm_{norm}/scale"] = 1 + array(dim)
            arrays[f"{start}LayerNorm_{norm}/bias"] = array(dim)
        for part in ("query", "key", "value"):
            name = f"{start}MultiHeadDotProductAttention_{attention}/{part}"
            arrays[f"{name}/kernel"] = array(dim, heads, width)
            arrays[f"{name}/bias"] = array(heads, width)
        name = f"{start}MultiHeadDotProductAttention_{attention}/out"
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = array(heads, width, dim), array(dim)
        for number, shape in enumerate(((dim, 128), (128, dim))):
            name = f"{start}MlpBlock_{mlp}/Dense_{number}"
            arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = array(*shape), array(shape[1])
    if pre_logits:
        arrays |= {"pre_logits/kernel": array(dim, dim), "pre_logits/bias": array(dim)}
    np.savez(path, **{prefix + name: value for name, value in arrays.items()})
    options = {**SIZES, "num_heads": heads, "mlp_ratio": 2, "num_classes": 5, **options}
    model = TimmViT(**options).eval()
    model.load_pretrained(str(path))

    def logits(x: Tensor) -> Tensor:
        pooled = model.forward_features(x)[:, 0]
        if pre_logits:
            kernel, bias = (torch.from_numpy(arrays[f"pre_logits/{n}"]) for n in ("kernel", "bias"))
            pooled = torch.tanh(pooled @ kernel + bias)
        return model.head(pooled)

    return Reference(path, model.forward_features, logits)


class EfficientKAN(nn.Module):
    """The published KAN of efficient-kan: its names, its grid, no norm between the layers."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for a, b in pairwise(widths):
            layer = nn.Module()
            for name, value in efficient_kan_state(a, b, 5, 3).items():
                if name == "grid":
                    layer.register_buffer(name, value)
                else:
                    layer.register_parameter(name, nn.Parameter(value))
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(-1, x.shape[-1])
        for layer in self.layers:
            y = textbook(y, layer.state_dict(), 3)
        return y.float().reshape(*x.shape[:-1], -1)


def vision_kansformer(path: Path) -> Reference:
    """vision_kansformer's model: timm's ViT with `kan` instead of `mlp` and a KAN as head."""
    model = perturb(TimmViT(**SIZES, num_classes=5))
    for block in model.blocks:
        block.mlp = EfficientKAN([64, 16, 64])
    model.head = EfficientKAN([64, 16, 5])
    state = {n.replace(".mlp.", ".kan."): value for n, value in model.state_dict().items()}
    torch.save(state, path)
    return _of_timm(path, model)
