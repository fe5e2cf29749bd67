"""Loads any ViT's weights file into our model, with a report on every tensor."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from kansformer.checkpoint import METADATA_KEY, read_weights
from kansformer.data.preprocessing import STATISTICS, Preprocessing
from kansformer.errors import UserError
from kansformer.pretrained.conversion import Conversion, StateDict
from kansformer.pretrained.formats import convert, infer_config
from kansformer.pretrained.prefixes import BESIDE
from kansformer.pretrained.read import RawFile, read_file, unreadable
from kansformer.pretrained.report import FILLED, Fate, LoadReport
from kansformer.pretrained.resize import resize_state
from kansformer.pretrained.sidecar import Sidecar, read_sidecar
from kansformer.pretrained.warm_start import is_narrow, mlp_to_ffn, warm_settings, zero_splines
from kansformer.words import number
from models.vit_model import FFN_SETTINGS, VisionTransformer, ViTConfig

# Least share of the model's parameters, apart from heads and splines, that a file has to fill. Some
# stay fresh only if the caller requests more blocks or parts that the file does not have.
LEAST_SHARE = 0.5
HEAD = r"(head|head_dist|pre_logits)\."
BLOCK = r"blocks\.\d+\.mlp\."
SPLINES = "splines of the KAN blocks, which start at zero"
NARROW = "narrow KAN blocks, not fitted to the file's MLPs yet"
# fields that determine a KAN head, apart from the number of classes
HEAD_FIELDS = ("head_hidden", "kan_norm", "kan_bias", "grid_size", "spline_order", "grid_range",
               "base_activation")  # fmt: skip
# the tensors that are added or removed when the caller changes a field of the file's config
CHANGES = {
    "depth": r"blocks\.\d+\.",
    "layer_scale": r"blocks\.\d+\.ls[12]\.",
    "qkv_bias": r"blocks\.\d+\.attn\.qkv\.bias",
    "fc_norm": r"(fc_)?norm\.",
    "reg_tokens": r"reg_token",
}


@dataclass(frozen=True)
class Source:
    """A file's tensors under our names, with its config, preprocessing and class names."""

    conversion: Conversion
    config: ViTConfig
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    statistics_known: bool  # whether mean and std are in the file or in its config.json


@dataclass(frozen=True)
class Fitted:
    """The tensors with which a file fills a model, under the model's names.

    Attributes:
        resized: names of those that were resized, and how.
        why_fresh_head: why the file's head is not used; empty if it is.
    """

    config: ViTConfig
    state: StateDict
    resized: dict[str, str]
    why_fresh_head: str


def load_pretrained(
    weights: str | Path,
    ffn: str | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    *,
    preprocessing: str | None = None,
    **config: Any,
) -> tuple[VisionTransformer, LoadReport]:
    """A model in eval mode from the weights of any ViT; `None` keeps the file's value.

    Reads files of timm, DeiT, DINO, DINOv2, MAE, Hugging Face, torchvision, Google (`.npz`), ViTs
    with efficient-kan blocks, and this project. For another picture size, position and patch
    embeddings are resampled as by timm. Another number of classes gives a fresh head. A file
    without a head, loaded without `num_classes`, gives a model whose output is the pooled features.

    Args:
        weights: a `.safetensors`, `.npz`, `.pth`, `.pt`, `.bin`, `.tar` or `.ckpt` file, an index
            of several files such as `model.safetensors.index.json`, or the folder of an index. No
            code in them is run.
        ffn: feed-forward block; the file's MLP blocks can become KAN blocks, but not the reverse.
        num_classes: classes of the head.
        img_size: side of the pictures, pixels.
        preprocessing: "half" or "imagenet", the mean and std of pixel values, if the file's format
            does not imply them.
        config: other fields of `ViTConfig`: `patch_size`, `in_chans`, `num_heads`, ...

    Returns:
        The model, and the report, which includes the preprocessing.

    Raises:
        UserError: no such file, a damaged or hostile one, not a ViT in a known format, or tensors
            that do not fit the requested config.
    """
    requested = {"ffn": ffn, "num_classes": num_classes, "img_size": img_size}
    requested = {name: value for name, value in requested.items() if value is not None}
    return _load(weights, {**config, **requested}, None, preprocessing)


def load_for_classes(
    path: str | Path,
    class_names: Sequence[str],
    *,
    preprocessing: str | None = None,
    **config: Any,
) -> tuple[VisionTransformer, LoadReport]:
    """As `load_pretrained`, for named classes.

    The head is kept if the file has the same class names in the same order, or the same number of
    classes without names; otherwise it is fresh.
    """
    requested = {**config, "num_classes": len(class_names)}
    return _load(path, requested, tuple(class_names), preprocessing)


def _load(
    path: str | Path,
    requested: dict[str, Any],
    class_names: tuple[str, ...] | None,
    statistics: str | None,
) -> tuple[VisionTransformer, LoadReport]:
    if statistics is not None and statistics not in STATISTICS:
        raise UserError(f"preprocessing {statistics!r}: unknown; use {' or '.join(STATISTICS)}")
    unknown = set(requested) - {field.name for field in fields(ViTConfig)}
    if unknown:
        raise UserError(f"unknown model settings: {', '.join(sorted(unknown))}")
    source = read_source(path, requested)
    conversion = source.conversion
    try:
        fitted = fit_source(source, requested, class_names)
        config, state = fitted.config, fitted.state
        preprocessing = source.preprocessing.for_input(config.img_size, config.in_chans)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: {error}; change the flags of the model") from None
    if statistics:
        preprocessing = preprocessing.with_statistics(statistics)
    elif conversion.assumption and not source.statistics_known:
        conversion.notes.append(conversion.assumption)
    filled = _fates(conversion, state, fitted.resized)
    model, fresh = _build(path, state, source.config, config, fitted.why_fresh_head)
    report = LoadReport(
        path=str(path),
        format=conversion.format,
        file=_file_fates(conversion, filled),
        model={name: filled.get(name) or fresh[name] for name in model.state_dict()},
        parameters=_count(model, filled),
        preprocessing=preprocessing,
        notes=tuple(conversion.notes),
    )
    _check_share(report, model)
    return model.eval(), report


def read_source(path: str | Path, requested: dict[str, Any]) -> Source:
    """Reads a weights file.

    Args:
        requested: fields of `ViTConfig`, for `num_heads`, which a file may not record.

    Raises:
        UserError: no such file, a damaged or hostile one, or not a ViT in a known format.
    """
    raw = read_file(path)
    return _read_ours(raw) if METADATA_KEY in raw.metadata else _read_foreign(raw, requested)


def fit_source(
    source: Source, requested: dict[str, Any], class_names: tuple[str, ...] | None
) -> Fitted:
    """The tensors with which a file fills the model that is requested; builds no model.

    The tensors that are not used are removed from `source.conversion`.

    Args:
        requested: fields of `ViTConfig`; those left out are the file's.

    Raises:
        ValueError, OverflowError: the file cannot become such a model.
    """
    conversion = source.conversion
    old_ffn, ffn = source.config.ffn, requested.get("ffn")
    if old_ffn == "mlp" and ffn in FFN_SETTINGS and ffn != old_ffn:
        requested = warm_settings(ffn, source.config, requested)
    settings = {**_without_block_sizes(source.config, requested), **requested}
    reason = _why_fresh_head(source, settings, class_names)
    if reason:
        settings["pre_logits"] = requested.get("pre_logits", False)
        _drop(conversion, HEAD, reason)
    elif class_names and source.class_names is None:
        conversion.notes.append("the head is kept, although the file does not name its classes")
    config = ViTConfig(**settings)
    _drop_unused(conversion, source.config, config)
    if config.ffn != old_ffn and is_narrow(config):
        _drop(conversion, BLOCK, f"replaced by a KAN of width {config.ffn_hidden}")
        conversion.notes.append("the KAN blocks are fresh until they are fitted to the MLPs")
    state, resized = resize_state(conversion.state, config, conversion.resampling)
    return Fitted(config, _to_ffn(state, source.config, config), resized, reason)


def _read_ours(raw: RawFile) -> Source:
    """A `best.safetensors` of this project."""
    file = read_weights(raw.path)
    conversion = Conversion("KANsformer", dict(file.tensors))
    for name in file.tensors:
        conversion.make(name, (name,), "")
    return Source(conversion, file.config, file.preprocessing, file.class_names, True)


def _read_foreign(raw: RawFile, requested: dict[str, Any]) -> Source:
    """A file of another project.

    Raises:
        UserError: the format is unknown, or the ViT is incomplete.
    """
    try:
        conversion = convert(raw.tensors, raw.unwrapped)
        conversion.skipped |= raw.skipped
        _skip_beside(conversion, raw.beside)
        if conversion.left:
            names = ", ".join(sorted(conversion.left)[:3])
            count = number(len(conversion.left), "unexpected tensor")
            raise ValueError(f"{count}: {names}")
        patches = conversion.state.get("patch_embed.proj.weight")
        width = 0 if patches is None else len(patches)
        hugging_face = conversion.format.startswith("Hugging Face")
        sidecar = read_sidecar(raw.sidecar, width, hugging_face)
        heads = (
            requested.get("num_heads") or conversion.config.get("num_heads") or sidecar.num_heads
        )
        if heads and width % heads:
            raise UserError(
                f"{raw.path}: its width {width} is not a multiple of num_heads {heads}; change the"
                " flags of the model"
            )
        settings = {"ffn": "mlp", **infer_config(conversion.state, heads), **conversion.config}
        settings["num_heads"] = heads or settings["num_heads"]
        if sidecar.norm_eps is not None:
            settings["norm_eps"] = sidecar.norm_eps
        config = ViTConfig(**settings)
        preprocessing = _preprocessing(conversion, sidecar, config)
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # from bad shapes
        remedy = "; set num_heads, --num-heads" if "number of attention heads" in str(error) else ""
        raise unreadable(raw.path, " ".join(str(error).split())[:300] + remedy) from None
    if heads is None:
        heads_text = number(config.num_heads, "attention head")
        conversion.notes.append(f"assuming {heads_text}, the usual number for its width")
    if not sidecar.is_empty:
        conversion.notes.append("settings were read from the config.json next to the file")
    if raw.unwrapped:
        conversion.notes.append(f"taken from {' / '.join(raw.unwrapped)}")
    class_names = sidecar.class_names
    if class_names is not None and len(class_names) != config.num_classes:
        class_names = None
    return Source(conversion, config, preprocessing, class_names, sidecar.mean is not None)


def _skip_beside(conversion: Conversion, beside: frozenset[str]) -> None:
    """Skips the tensors beside the ViT that are not a linear head on its features."""
    for name in beside & conversion.left.keys():
        conversion.skipped[name] = BESIDE
        del conversion.left[name]
    patches = conversion.state.get("patch_embed.proj.weight")
    for head in ("head", "head_dist"):
        names = [f"{head}.weight", f"{head}.bias"]
        made = [name for name in names if beside.intersection(conversion.sources.get(name, ()))]
        shapes = [conversion.state[name].shape for name in made]
        fits = len(made) == 2 and patches is not None and shapes[0][1:] == patches.shape[:1]
        if made and not fits:
            _drop(conversion, rf"{head}\.", "a head for other features than the ViT's")


def _preprocessing(conversion: Conversion, sidecar: Sidecar, config: ViTConfig) -> Preprocessing:
    values = dict(conversion.preprocessing)
    mean, std = STATISTICS[values.pop("statistics")]
    mean, std = sidecar.mean or mean, sidecar.std or std
    three = Preprocessing(config.img_size, 3, mean, std, **values)
    return three.for_input(config.img_size, config.in_chans)


def _without_block_sizes(config: ViTConfig, requested: dict[str, Any]) -> dict[str, Any]:
    """The file's settings, without sizes per block where one size for all blocks is requested."""
    settings = config.to_dict()
    if requested.get("kan_hidden", "full") != "full" or "mlp_ratio" in requested:
        settings["hidden_widths"] = None
    if "grid_size" in requested:
        settings["grid_sizes"] = None
    for name in ("hidden_widths", "grid_sizes"):
        settings[name] = settings[name] and settings[name][: requested.get("depth")]
    return settings


def _why_fresh_head(
    source: Source, settings: dict[str, Any], class_names: tuple[str, ...] | None
) -> str:
    """Why the file's head cannot be kept; empty if it can."""
    old, new = source.config, settings["num_classes"]
    if not old.num_classes:
        return "the file has no head" if new else ""
    if new != old.num_classes:
        return f"{number(new, 'class')} instead of {old.num_classes}"
    if None not in (class_names, source.class_names) and class_names != source.class_names:
        return "the class names or their order differ"
    if settings["pool"] != old.pool and "both" in (settings["pool"], old.pool):
        return f"pool={settings['pool']} instead of {old.pool}"
    if settings["head"] != old.head:
        return f"a {settings['head']} head instead of a {old.head} one"
    changed = [name for name in HEAD_FIELDS if settings[name] != getattr(source.config, name)]
    if settings["head"] == "kan" and changed:
        return f"a KAN head with another {changed[0]}"
    return ""


def _drop(conversion: Conversion, pattern: str, reason: str) -> None:
    """Drops the converted tensors whose names start with a match, and skips their sources."""
    for name in [name for name in conversion.state if re.match(pattern, name)]:
        del conversion.state[name]
        for theirs in conversion.sources.pop(name):
            conversion.skipped[theirs] = reason


def _drop_unused(conversion: Conversion, old: ViTConfig, new: ViTConfig) -> None:
    """Drops the tensors that the new config does not use."""
    for name, pattern in CHANGES.items():
        value = getattr(new, name)
        if value == getattr(old, name):
            continue
        if name == "depth":
            pattern = "|".join(rf"blocks\.{n}\." for n in range(new.depth, old.depth)) or r"(?!)"
        elif value and name != "fc_norm":
            continue
        _drop(conversion, pattern, f"{name}={value} was requested")


def _to_ffn(state: StateDict, old: ViTConfig, new: ViTConfig) -> StateDict:
    """The state dict with the requested feed-forward blocks."""
    if new.ffn == old.ffn:
        return state
    if old.ffn != "mlp":
        raise ValueError(
            f"its {old.ffn} blocks cannot become {new.ffn} blocks; only MLP blocks can be converted"
        )
    return state if is_narrow(new) else mlp_to_ffn(state, new)


def _fates(conversion: Conversion, state: StateDict, resized: dict[str, str]) -> dict[str, Fate]:
    """The fate of each tensor of the state dict that fills the model."""
    fates = {}
    for name, tensor in state.items():
        if name in resized:
            fates[name] = Fate("resized", resized[name])
        elif conversion.state.get(name) is not tensor:  # renamed by `mlp_to_ffn`
            fates[name] = Fate("converted", "from the MLP")
        elif name in conversion.how:
            origin = ", ".join(conversion.sources[name])
            fates[name] = Fate("converted", f"{origin} {conversion.how[name]}")
        else:
            fates[name] = Fate("loaded")
    return fates


def _file_fates(conversion: Conversion, filled: dict[str, Fate]) -> dict[str, Fate]:
    """The fate of each tensor of the file."""
    fates = {name: Fate("skipped", reason) for name, reason in conversion.skipped.items()}
    for ours, names in conversion.sources.items():
        status = filled[ours].status if ours in filled else "converted"  # an MLP made into a KAN
        for name in names:
            before = fates.get(name, Fate("loaded"))  # a tensor may be used for two of ours
            if FILLED.index(before.status) <= FILLED.index(status):
                fates[name] = Fate(status, "" if ours == name else f"in {ours}")
    return fates


def _build(
    path: str | Path, state: StateDict, old: ViTConfig, config: ViTConfig, why_fresh_head: str
) -> tuple[VisionTransformer, dict[str, Fate]]:
    """The model filled with the state dict, and its fresh tensors with reasons.

    Raises:
        UserError: an unexpected or missing tensor, or one of another shape.
    """
    with torch.device("meta"):  # allocates nothing, however large the requested sizes are
        shapes = {n: t.shape for n, t in VisionTransformer(config).state_dict().items()}
    fresh = {}
    for name in shapes.keys() - state.keys():
        changed = next(
            (field for field, pattern in CHANGES.items()
             if re.match(pattern, name) and getattr(config, field) != getattr(old, field)), None,
        )  # fmt: skip
        if why_fresh_head and re.match(HEAD, name):
            fresh[name] = Fate("fresh", why_fresh_head)
        elif config.ffn != old.ffn and re.match(BLOCK, name):
            fresh[name] = Fate("fresh", NARROW if is_narrow(config) else SPLINES)
        elif changed:
            fresh[name] = Fate("fresh", f"{changed}={getattr(config, changed)} was requested")
    misfits = {
        **{n: "is unexpected" for n in state if n not in shapes},
        **{n: "is missing" for n in shapes if n not in state and n not in fresh},
        **{n: f"has shape {tuple(t.shape)} instead of {tuple(shapes[n])}" for n, t in state.items()
           if n in shapes and t.shape != shapes[n]},
        **{n: f"is of type {t.dtype}" for n, t in state.items() if t.dtype != torch.float32},
    }  # fmt: skip
    if misfits:
        name, cause = next(iter(misfits.items()))
        do = "does" if len(misfits) == 1 else "do"
        raise UserError(
            f"{path}: {number(len(misfits), 'tensor')} {do} not fit the model: {name} {cause};"
            " remove the flags that change the model, or give a complete ViT"
        )
    model = VisionTransformer(config)
    model.load_state_dict(state, strict=False)
    if config.ffn != old.ffn and not is_narrow(config):
        zero_splines(model)
    return model, fresh


def _count(model: VisionTransformer, filled: dict[str, Fate]) -> dict[str, int]:
    """Numbers of parameters by status."""
    counts = dict.fromkeys((*FILLED, "fresh"), 0)
    for name, parameter in model.named_parameters():
        counts[filled[name].status if name in filled else "fresh"] += parameter.numel()
    return counts


def _check_share(report: LoadReport, model: VisionTransformer) -> None:
    """Raises UserError if most of the model, apart from heads and splines, is fresh."""
    counted = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if report.model[name].status != "fresh"
        or not (re.match(HEAD, name) or report.model[name].reason in (SPLINES, NARROW))
    }
    filled = sum(n for name, n in counted.items() if report.model[name].status != "fresh")
    if filled < LEAST_SHARE * sum(counted.values()):
        raise UserError(
            f"{report.path}: fills only {filled / sum(counted.values()):.0%} of the model, less"
            f" than {LEAST_SHARE:.0%}; request a model more like the file's"
        )
