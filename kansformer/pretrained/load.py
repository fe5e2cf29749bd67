"""Any ViT's weights file to a model of ours, with a report on every tensor."""

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

# Least share of the model's parameters that a file has to fill, heads and splines aside. All of
# them, but where the caller asked for a deeper model or for parts that the file has not.
LEAST_SHARE = 0.5
HEAD = r"(head|head_dist|pre_logits)\."
BLOCK = r"blocks\.\d+\.mlp\."
SPLINES = "the KAN's own, which an MLP does not have"
NARROW = "a narrow KAN's, until it is fitted to the file's MLP"
# fields that shape a KAN head, besides the classes
HEAD_FIELDS = ("head_hidden", "kan_norm", "kan_bias", "grid_size", "spline_order", "grid_range",
               "base_activation")  # fmt: skip
# the tensors that come or go when the caller changes a field of the file's config
CHANGES = {
    "depth": r"blocks\.\d+\.",
    "layer_scale": r"blocks\.\d+\.ls[12]\.",
    "qkv_bias": r"blocks\.\d+\.attn\.qkv\.bias",
    "fc_norm": r"(fc_)?norm\.",
    "reg_tokens": r"reg_token",
}


@dataclass(frozen=True)
class Source:
    """A file's tensors under our names, its config, and what belongs to it."""

    conversion: Conversion
    config: ViTConfig
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    pixels_known: bool  # whether mean and std stand beside the file


def load_pretrained(
    weights: str | Path,
    ffn: str | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    *,
    preprocessing: str | None = None,
    **config: Any,
) -> tuple[VisionTransformer, LoadReport]:
    """A model in eval mode from the weights of any ViT; `None` keeps what the file has.

    Files of timm, DeiT, DINO, DINOv2, MAE, Hugging Face, torchvision and Google (`.npz`), of ViTs
    with efficient-kan's blocks, and our own. Positions and patches are resampled for other pictures
    as timm does it. Another number of classes has a fresh head; a file without a head, and no
    `num_classes`, gives a model without one, whose output is the pooled features.

    Args:
        weights: a `.safetensors`, `.npz`, `.pth`, `.pt`, `.bin`, `.tar` or `.ckpt` file, an index
            of several such as `model.safetensors.index.json`, or the folder that holds one; nothing
            in them is run.
        ffn: feed-forward block; KAN blocks can be made of the file's MLPs, nothing of its KANs.
        num_classes: classes of the head.
        img_size: side of the pictures, pixels.
        preprocessing: "half" or "imagenet", the mean and std of pixel values, where the file's
            format does not tell.
        config: other fields of `ViTConfig`: `patch_size`, `in_chans`, `num_heads`, ...

    Returns:
        The model, and the report, which has the preprocessing too.

    Raises:
        UserError: no such file, a damaged or hostile one, not a ViT that is known, or tensors that
            do not fit what was asked for.
    """
    asked = {"ffn": ffn, "num_classes": num_classes, "img_size": img_size}
    asked = {name: value for name, value in asked.items() if value is not None}
    return _load(weights, {**config, **asked}, None, preprocessing)


def load_for_classes(
    path: str | Path,
    class_names: Sequence[str],
    *,
    preprocessing: str | None = None,
    **config: Any,
) -> tuple[VisionTransformer, LoadReport]:
    """As `load_pretrained`, for classes by name.

    The head is kept if the file has the same names in the same order, or has as many classes and
    does not name them; else it is fresh.
    """
    asked = {**config, "num_classes": len(class_names)}
    return _load(path, asked, tuple(class_names), preprocessing)


def _load(
    path: str | Path,
    asked: dict[str, Any],
    class_names: tuple[str, ...] | None,
    statistics: str | None,
) -> tuple[VisionTransformer, LoadReport]:
    if statistics is not None and statistics not in STATISTICS:
        raise UserError(f"preprocessing {statistics!r}: unknown; take {' or '.join(STATISTICS)}")
    unknown = set(asked) - {field.name for field in fields(ViTConfig)}
    if unknown:
        raise UserError(f"unknown model settings: {', '.join(sorted(unknown))}")
    raw = read_file(path)
    source = _our_own(raw) if METADATA_KEY in raw.metadata else _foreign(raw, asked)
    conversion = source.conversion
    try:
        old_ffn, ffn = source.config.ffn, asked.get("ffn")
        if old_ffn == "mlp" and ffn in FFN_SETTINGS and ffn != old_ffn:
            asked = warm_settings(ffn, source.config, asked)
        settings = {**_sizes_of_blocks(source.config, asked), **asked}
        reason = _why_fresh_head(source, settings, class_names)
        if reason:
            settings["pre_logits"] = asked.get("pre_logits", False)
            _drop(conversion, HEAD, reason)
        elif class_names and source.class_names is None:
            conversion.notes.append("the head is kept, although the file does not name its classes")
        config = ViTConfig(**settings)
        _drop_unasked(conversion, source.config, config)
        if config.ffn != old_ffn and is_narrow(config):
            _drop(conversion, BLOCK, f"a KAN of width {config.ffn_hidden} takes its place")
            conversion.notes.append("the KAN blocks are fresh until they are fitted to the MLPs")
        state, resized = resize_state(conversion.state, config, conversion.resampling)
        preprocessing = source.preprocessing.for_input(config.img_size, config.in_chans)
        state = _to_ffn(state, source.config, config)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: {error}; change the flags of the model") from None
    if statistics:
        preprocessing = preprocessing.with_statistics(statistics)
    elif conversion.assumption and not source.pixels_known:
        conversion.notes.append(conversion.assumption)
    filled = _fates(conversion, state, resized)
    model, fresh = _build(path, state, source.config, config, reason)
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


def _our_own(raw: RawFile) -> Source:
    file = read_weights(raw.path)
    conversion = Conversion("KANsformer", dict(file.tensors))
    for name in file.tensors:
        conversion.make(name, (name,), "")
    return Source(conversion, file.config, file.preprocessing, file.class_names, True)


def _foreign(raw: RawFile, asked: dict[str, Any]) -> Source:
    """A file of another project.

    Raises:
        UserError: it is none that is known, or does not hold a whole ViT.
    """
    try:
        conversion = convert(raw.tensors, raw.unwrapped)
        conversion.skipped |= raw.skipped
        _leave_out_beside(conversion, raw.beside)
        if conversion.left:
            has = "has" if len(conversion.left) == 1 else "have"
            more = f"{number(len(conversion.left), 'tensor')} {has} no place in a ViT: "
            raise ValueError(more + ", ".join(sorted(conversion.left)[:3]))
        patches = conversion.state.get("patch_embed.proj.weight")
        width = 0 if patches is None else len(patches)
        hugging_face = conversion.format.startswith("Hugging Face")
        sidecar = read_sidecar(raw.sidecar, width, hugging_face)
        heads = asked.get("num_heads") or conversion.config.get("num_heads") or sidecar.num_heads
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
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # of shapes, too
        remedy = "; give num_heads, --num-heads" if "how many heads" in str(error) else ""
        raise unreadable(raw.path, " ".join(str(error).split())[:300] + remedy) from None
    if heads is None:
        conversion.notes.append(f"{config.num_heads} heads are assumed, as is usual for its width")
    if not sidecar.is_empty:
        conversion.notes.append("the config.json beside it was read")
    if raw.unwrapped:
        conversion.notes.append(f"taken from {' / '.join(raw.unwrapped)}")
    names = sidecar.class_names
    known = names is not None and len(names) == config.num_classes
    return Source(
        conversion, config, preprocessing, names if known else None, sidecar.mean is not None
    )


def _leave_out_beside(conversion: Conversion, beside: frozenset[str]) -> None:
    """Leaves out what stands beside the ViT and is no head for its features."""
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


def _sizes_of_blocks(config: ViTConfig, asked: dict[str, Any]) -> dict[str, Any]:
    """The file's settings; sizes of its blocks, one by one, go where one for all is asked for."""
    settings = config.to_dict()
    if asked.get("kan_hidden", "full") != "full" or "mlp_ratio" in asked:
        settings["hidden_widths"] = None
    if "grid_size" in asked:
        settings["grid_sizes"] = None
    for name in ("hidden_widths", "grid_sizes"):
        settings[name] = settings[name] and settings[name][: asked.get("depth")]
    return settings


def _why_fresh_head(
    source: Source, settings: dict[str, Any], class_names: tuple[str, ...] | None
) -> str:
    """Why the file's head cannot be kept, or nothing if it can."""
    old, new = source.config, settings["num_classes"]
    if not old.num_classes:
        return "the file has no head" if new else ""
    if new != old.num_classes:
        return f"{number(new, 'class')} instead of {old.num_classes}"
    if None not in (class_names, source.class_names) and class_names != source.class_names:
        return "other class names, or in another order"
    if settings["head"] != old.head:
        return f"a {settings['head']} head instead of a {old.head} one"
    changed = [name for name in HEAD_FIELDS if settings[name] != getattr(source.config, name)]
    if settings["head"] == "kan" and changed:
        return f"a KAN head with another {changed[0]}"
    return ""


def _drop(conversion: Conversion, pattern: str, reason: str) -> None:
    """Leaves out, by design, those of our tensors whose names match at the start."""
    for name in [name for name in conversion.state if re.match(pattern, name)]:
        del conversion.state[name]
        for theirs in conversion.sources.pop(name):
            conversion.skipped[theirs] = reason


def _drop_unasked(conversion: Conversion, old: ViTConfig, new: ViTConfig) -> None:
    """Leaves out what a changed field of the config has no use for."""
    for name, pattern in CHANGES.items():
        value = getattr(new, name)
        if value == getattr(old, name):
            continue
        if name == "depth":
            pattern = "|".join(rf"blocks\.{n}\." for n in range(new.depth, old.depth)) or r"(?!)"
        elif value and name != "fc_norm":
            continue
        _drop(conversion, pattern, f"{name}={value} was asked for")


def _to_ffn(state: StateDict, old: ViTConfig, new: ViTConfig) -> StateDict:
    """The state dict with the feed-forward blocks that were asked for."""
    if new.ffn == old.ffn:
        return state
    if old.ffn != "mlp":
        raise ValueError(
            f"its {old.ffn} blocks do not fit {new.ffn} blocks, since only MLP blocks can become"
            " others"
        )
    return state if is_narrow(new) else mlp_to_ffn(state, new)


def _fates(conversion: Conversion, state: StateDict, resized: dict[str, str]) -> dict[str, Fate]:
    """What became of each tensor that goes into the model.

    Those that are not of the conversion are made of its MLP blocks.
    """
    fates = {}
    for name, tensor in state.items():
        if name in resized:
            fates[name] = Fate("resized", resized[name])
        elif conversion.state.get(name) is not tensor:
            fates[name] = Fate("converted", "from the MLP")
        elif name in conversion.how:
            origin = ", ".join(conversion.sources[name])
            fates[name] = Fate("converted", f"{origin} {conversion.how[name]}")
        else:
            fates[name] = Fate("loaded")
    return fates


def _file_fates(conversion: Conversion, filled: dict[str, Fate]) -> dict[str, Fate]:
    """What became of each tensor of the file."""
    fates = {name: Fate("skipped", reason) for name, reason in conversion.skipped.items()}
    for ours, names in conversion.sources.items():
        status = filled[ours].status if ours in filled else "converted"  # an MLP made into a KAN
        for name in names:
            before = fates.get(name, Fate("loaded"))  # one may be part of two of ours
            if FILLED.index(before.status) <= FILLED.index(status):
                fates[name] = Fate(status, "" if ours == name else f"in {ours}")
    return fates


def _build(
    path: str | Path, state: StateDict, old: ViTConfig, config: ViTConfig, why_fresh_head: str
) -> tuple[VisionTransformer, dict[str, Fate]]:
    """The model with the state in it, and which of its tensors are fresh, with reasons.

    Raises:
        UserError: a tensor too many, too few, or of another shape.
    """
    with torch.device("meta"):  # no memory for sizes that the tensors do not have
        shapes = {n: t.shape for n, t in VisionTransformer(config).state_dict().items()}
    fresh = {}
    for name in shapes.keys() - state.keys():
        asked = next(
            (field for field, pattern in CHANGES.items()
             if re.match(pattern, name) and getattr(config, field) != getattr(old, field)), None,
        )  # fmt: skip
        if why_fresh_head and re.match(HEAD, name):
            fresh[name] = Fate("fresh", why_fresh_head)
        elif config.ffn != old.ffn and re.match(BLOCK, name):
            fresh[name] = Fate("fresh", NARROW if is_narrow(config) else SPLINES)
        elif asked:
            fresh[name] = Fate("fresh", f"{asked}={getattr(config, asked)} was asked for")
    misfits = {
        **{n: "has no place there" for n in state if n not in shapes},
        **{n: "is missing" for n in shapes if n not in state and n not in fresh},
        **{n: f"is {tuple(t.shape)}, not {tuple(shapes[n])}" for n, t in state.items()
           if n in shapes and t.shape != shapes[n]},
        **{n: f"is of type {t.dtype}" for n, t in state.items() if t.dtype != torch.float32},
    }  # fmt: skip
    if misfits:
        name, cause = next(iter(misfits.items()))
        do = "does" if len(misfits) == 1 else "do"
        raise UserError(
            f"{path}: {number(len(misfits), 'tensor')} {do} not fit the model: {name} {cause};"
            " leave out the flags that change the model, or give a whole ViT"
        )
    model = VisionTransformer(config)
    model.load_state_dict(state, strict=False)
    if config.ffn != old.ffn and not is_narrow(config):
        zero_splines(model)
    return model, fresh


def _count(model: VisionTransformer, filled: dict[str, Fate]) -> dict[str, int]:
    """Parameters by what became of them."""
    counts = dict.fromkeys((*FILLED, "fresh"), 0)
    for name, parameter in model.named_parameters():
        counts[filled[name].status if name in filled else "fresh"] += parameter.numel()
    return counts


def _check_share(report: LoadReport, model: VisionTransformer) -> None:
    """Refuses a load that leaves most of the model fresh, heads and splines aside."""
    counted = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if report.model[name].status != "fresh"
        or not (re.match(HEAD, name) or report.model[name].reason in (SPLINES, NARROW))
    }
    filled = sum(n for name, n in counted.items() if report.model[name].status != "fresh")
    if filled < LEAST_SHARE * sum(counted.values()):
        raise UserError(
            f"{report.path}: fills only {filled / sum(counted.values()):.0%} of the model, and"
            f" {LEAST_SHARE:.0%} is the least; ask for a model more like the file's"
        )
