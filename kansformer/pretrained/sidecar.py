"""The settings in Hugging Face's and timm's config.json that the tensors beside it do not show."""

import re
from dataclasses import dataclass
from typing import Any

EXACT_GELU = ("gelu", "gelu_python")
# timm's models that have tensors of the same names and shapes but compute something else
LOOK_ALIKES = r"rope|_rpn|siglip|quickgelu|clip"


@dataclass(frozen=True)
class Sidecar:
    """Settings of a config.json; None for those that are not in it."""

    num_heads: int | None = None
    norm_eps: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no setting is known."""
        return self == Sidecar()


def read_sidecar(values: dict[str, Any], embed_dim: int, hugging_face: bool) -> Sidecar:
    """The settings for a model of that width, of Hugging Face or timm; empty for any other model.

    Raises:
        ValueError: an activation function other than the exact GELU, or a timm model whose tensors
            look like a ViT's but which computes something else.
    """
    if hugging_face:
        return _hugging_face(values) if values.get("hidden_size") == embed_dim else Sidecar()
    known = isinstance(values.get("pretrained_cfg"), dict)
    return _timm(values) if known and values.get("num_features") == embed_dim else Sidecar()


def _hugging_face(values: dict[str, Any]) -> Sidecar:
    activation = values.get("hidden_act", "gelu")
    if activation not in EXACT_GELU:
        raise ValueError(
            f"its config.json has the activation {activation!r}; only gelu is supported"
        )
    heads, eps = values.get("num_attention_heads"), values.get("layer_norm_eps")
    labels = values.get("id2label")
    names = None
    if isinstance(labels, dict) and all(str(i) in labels for i in range(len(labels))):
        names = tuple(str(labels[str(i)]) for i in range(len(labels)))
        if names[:1] == ("LABEL_0",):  # transformers' placeholders where no names were set
            names = None
    return Sidecar(
        heads if isinstance(heads, int) and heads > 0 else None,
        eps if isinstance(eps, float) else None,
        class_names=names,
    )


def _timm(values: dict[str, Any]) -> Sidecar:
    architecture = str(values.get("architecture"))
    if re.search(LOOK_ALIKES, architecture):
        raise ValueError(f"not supported: {architecture[:60]}, named in its config.json")
    pretrained = values["pretrained_cfg"]
    names = values.get("label_names")
    return Sidecar(
        mean=_three(pretrained.get("mean")),
        std=_three(pretrained.get("std")),
        class_names=tuple(map(str, names)) if isinstance(names, list) else None,
    )


def _three(value: Any) -> tuple[float, ...] | None:
    good = isinstance(value, list) and len(value) == 3 and all(isinstance(v, float) for v in value)
    return tuple(value) if good else None
