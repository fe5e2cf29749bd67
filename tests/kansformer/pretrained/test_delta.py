"""A delta and its base make the saved model again, bit for bit; nothing else does."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kansformer.checkpoint import METADATA_KEY, TrainedModel, load_model, save_model
from kansformer.data import Preprocessing
from kansformer.errors import UserError
from kansformer.pretrained import load_for_classes, load_pretrained
from kansformer.pretrained.delta import fingerprint, load_delta, save_delta
from models.vit_model import VisionTransformer
from tests.conftest import tiny_settings
from tests.kansformer.pretrained import foreign
from tests.kansformer.train.runs import do, stop_after

Command = Callable[..., tuple[int, str, str]]
NAMES = ("ant", "bee", "cat")
PARTS = ("head", "splines", "norms", "biases")


def equal_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def assert_same_model(a: TrainedModel, b: TrainedModel) -> None:
    mine, other = a.state_dict(), b.state_dict()
    assert list(mine) == list(other)
    assert all(equal_bits(mine[name], other[name]) for name in mine)
    for name in ("config", "preprocessing", "class_names", "training_info", "temperature"):
        assert getattr(a, name) == getattr(b, name)
    assert not a.training
    assert all(p.is_contiguous() for p in a.parameters())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """timm's ViT with LayerScale, of 16 patches, without mean and std."""
    return foreign.timm_vit(tmp_path / "vit.pth", init_values=0.1).path


def tuned(
    folder: Path, base: Path, change: Callable[[str, Tensor], bool], **config: Any
) -> tuple[Path, Path]:
    """A weights file of a model from the base, with changes, and its delta."""
    model, report = load_for_classes(str(base), NAMES, **config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if change(name, value):
                value += 0.01
    best, delta = folder / "best.safetensors", folder / "best-delta.safetensors"
    save_model(best, model, report.preprocessing, NAMES, {"epoch": 3})
    save_delta(delta, best, base)
    return best, delta


def head_only(name: str, value: Tensor) -> bool:
    return name.startswith("head.")


@pytest.mark.parametrize("tune", [*PARTS, "splines,head", "all"])
def test_a_run_saves_what_completes_its_base(
    tune: str, tmp_path: Path, colors: Path, base: Path, command: Command
) -> None:
    settings = {"weights": str(base), "ffn": "group-kan", "img_size": 16, "ema": 0.9}
    settings |= {"tune": tune, "epochs": 2, "save_delta": True}
    if tune in ("splines,head", "all"):  # else the fitted head may be the best on so few pictures
        settings["head_first"] = False
    lines: list[str] = []
    out = tmp_path / "out"
    do(tiny_settings(colors, out, **settings), lines.append)
    best, delta = out / "best.safetensors", out / "best-delta.safetensors"
    assert_same_model(load_delta(delta, base), load_model(best))
    again = tmp_path / "again.safetensors"
    name = "kansformer.pretrained.delta"
    status, text, _ = command(name, "--delta", delta, "--weights", base, "--output", again)
    assert (status, text.count("\n")) == (0, 1)
    assert_same_model(load_model(again), load_model(best))
    assert again.stat().st_size == best.stat().st_size

    (line,) = [line for line in lines if line.startswith("delta")]
    assert f"{delta}: what differs from {base}" in line
    warned = [line for line in lines if line.startswith("warning: --save-delta")]
    assert bool(warned) == (tune == "all")
    assert (delta.stat().st_size < 100_000) == (tune != "all")
    stored = set(load_file(delta))
    assert ("pos_embed" in stored) == (tune == "all")
    assert {"head.weight", "head.bias", "blocks.0.mlp.fc1.spline_weight"} <= stored  # fresh
    if tune == "splines,head":
        kinds = {n.rsplit(".", 1)[-1] for n in stored if n.startswith("blocks.")}
        assert kinds == {"spline_weight", "grid"}
        others = {n for n in stored if not n.startswith("blocks.")}
        assert others == {"head.weight", "head.bias", "norm.weight", "norm.bias"}


def test_a_stopped_run_has_its_delta_at_the_end(tmp_path: Path, colors: Path, base: Path) -> None:
    settings = {"weights": str(base), "img_size": 16, "tune": "head", "save_delta": True}
    settings["head_first"] = False
    out = tmp_path / "out"
    do(tiny_settings(colors, out, **settings))
    delta = out / "best-delta.safetensors"
    whole = delta.read_bytes()
    settings["overwrite"] = True
    with pytest.raises(BaseException, match="stopped at epoch 2"):
        stop_after(5, lambda: do(tiny_settings(colors, out, **settings)))
    assert not delta.exists()  # that of the earlier run, whose other files are replaced too
    do(tiny_settings(colors, out, **{**settings, "overwrite": False}, resume=True))
    assert delta.read_bytes() != b""
    assert load_file(delta).keys() == safetensors.torch.load(whole).keys()
    assert_same_model(load_delta(delta, base), load_model(out / "best.safetensors"))
    # a finished run can have its delta later
    delta.unlink()
    without = {**settings, "overwrite": False, "save_delta": False}
    do(tiny_settings(colors, out, **without, resume=True))
    assert not delta.exists()
    do(tiny_settings(colors, out, **{**without, "save_delta": True}, resume=True))
    assert_same_model(load_delta(delta, base), load_model(out / "best.safetensors"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"ffn": "kan", "kan_hidden": "full"},
        {"ffn": "kan"},
        {"img_size": 48, "patch_size": 16, "in_chans": 1},
        {"depth": 1, "pool": "both"},
        {"head": "kan", "layer_scale": None},
    ],
    ids=str,
)
def test_any_model_of_the_base(config: dict[str, Any], tmp_path: Path, base: Path) -> None:
    best, delta = tuned(tmp_path, base, head_only, **config)
    assert_same_model(load_delta(delta, base), load_model(best))
    stored = load_file(delta)
    assert not {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} & set(stored)


@pytest.mark.parametrize(
    "make",
    [foreign.deit_distilled, foreign.deit3, foreign.dino, foreign.timm_vit],
    ids=lambda make: make.__name__,
)
def test_bases_of_other_formats(make: Callable[[Path], Any], tmp_path: Path) -> None:
    base = make(tmp_path / "base.pth").path
    best, delta = tuned(tmp_path, base, head_only, ffn="group-kan", img_size=16)
    assert_same_model(load_delta(delta, base), load_model(best))


def test_a_model_of_this_project_as_base(tmp_path: Path, colors: Path, trained: Path) -> None:
    """Also with grids that are refined later, so that its splines have other shapes."""
    base = trained / "best.safetensors"
    settings = {"weights": str(base), "tune": "splines", "refine_grid": ((1, 12),)}
    do(tiny_settings(colors, tmp_path / "out", epochs=2, save_delta=True, **settings))
    best, delta = (tmp_path / "out" / f"{n}.safetensors" for n in ("best", "best-delta"))
    assert_same_model(load_delta(delta, base), load_model(best))
    assert not any(name.startswith(("head.", "norm.")) for name in load_file(delta))


def test_zeros_of_both_signs_are_told_apart(tmp_path: Path, base: Path) -> None:
    state = torch.load(base, weights_only=True)
    state["norm.bias"][:] = -0.0
    torch.save(state, base)
    _, delta = tuned(tmp_path, base, head_only)
    model, report = load_for_classes(str(base), NAMES)
    with torch.no_grad():
        model.norm.bias.fill_(0.0)
    save_model(tmp_path / "best.safetensors", model, report.preprocessing, NAMES)
    assert "norm.bias" not in load_file(delta)
    save_delta(delta, tmp_path / "best.safetensors", base)
    assert "norm.bias" in load_file(delta)
    assert_same_model(load_delta(delta, base), load_model(tmp_path / "best.safetensors"))


def test_the_same_weights_in_another_file_are_accepted(tmp_path: Path, base: Path) -> None:
    best, delta = tuned(tmp_path, base, head_only, img_size=16)
    state = torch.load(base, weights_only=True)
    save_file(dict(reversed(state.items())), tmp_path / "copy.safetensors")
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "copy.ckpt")
    model, report = load_pretrained(base)
    names = tuple(f"class {i}" for i in range(5))
    save_model(tmp_path / "ours.safetensors", model, report.preprocessing, names)
    state["head.weight"] = torch.randn_like(state["head.weight"])  # which is not used
    torch.save(state, tmp_path / "other head.pth")
    for name in ("copy.safetensors", "copy.ckpt", "ours.safetensors", "other head.pth"):
        assert_same_model(load_delta(delta, tmp_path / name), load_model(best))


@pytest.mark.parametrize("change", ["a bit", "a tensor", "size", "kan", "no vit"])
def test_other_weights_are_refused(
    change: str, tmp_path: Path, base: Path, command: Command, trained: Path
) -> None:
    _, delta = tuned(tmp_path, base, head_only, img_size=16)
    other, output = tmp_path / "other.pth", tmp_path / "new.safetensors"
    state = torch.load(base, weights_only=True)
    if change == "a bit":
        value = state["pos_embed"]  # which is resized
        value[0, 3, 5] = torch.nextafter(value[0, 3, 5], torch.tensor(9.0))
    elif change == "a tensor":
        state["norm.bias"] = state["norm.bias"] + 1
    elif change == "size":
        other = foreign.timm_vit(other, embed_dim=96).path
    elif change == "kan":
        other = trained / "best.safetensors"
    else:
        state = {"x": torch.zeros(1)}
    if change in ("a bit", "a tensor", "no vit"):
        torch.save(state, other)
    arguments = ("--delta", delta, "--weights", other, "--output", output)
    status, out, err = command("kansformer.pretrained.delta", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {other}: ")
    assert change == "no vit" or "the file that the training started from" in err
    assert not output.exists()


def test_a_delta_is_no_weights_file_and_the_reverse(
    tmp_path: Path, base: Path, command: Command, colors: Path
) -> None:
    best, delta = tuned(tmp_path, base, head_only)
    remedy = f"python -m kansformer.pretrained.delta --delta {delta} --weights"
    picture = next(colors.rglob("*.png"))
    for name, arguments in (
        ("predict", (picture,)),
        ("train", ("--data-path", colors, "--output", "out")),
        ("kansformer.evaluate.__main__", ("--data-path", colors)),
        ("kansformer.export.__main__", ("--format", "pt2", "--output", "x.pt2")),
    ):
        status, _, err = command(name, *arguments, "--weights", delta)
        assert status == 2
        assert f"error: {delta}: only the difference from pretrained weights" in err
        assert remedy in err
        assert err.count("\n") == 1
    with pytest.raises(UserError, match="a complete weights file"):
        load_delta(best, base)
    with pytest.raises(UserError, match="no such weights file"):
        load_delta(delta, tmp_path / "missing.pth")
    with pytest.raises(UserError, match="no such weights file"):
        load_delta(tmp_path / "missing.safetensors", base)
    arguments = ("--delta", delta, "--weights", base, "--output", tmp_path)
    assert command("kansformer.pretrained.delta", *arguments)[0] == 2


HOSTILE: list[dict[str, Any]] = [
    {"config__depth": 10**9},
    {"config__embed_dim": 3 * 10**7},
    {"config__img_size": 10**6},
    {"config__patch_size": 10**5, "config__img_size": 10**5},
    {"config__in_chans": 10**9},
    {"config__head_hidden": 10**9, "config__head": "kan"},
    {"config__reg_tokens": 10**9},
    {"config__num_classes": 10**9},
    {"config__grid_size": 10**6, "config__ffn": "group-kan"},
    {"config__ffn": "kan", "config__kan_hidden": 10**9},
    {"config__color": 1},
    {"config": None},
    {"base": 3},
    {"base": ["x"]},
    {"base": "0" * 64},
    {"base": ""},
    {"class_names": ["ant"]},
    {"temperature": -1},
    {"format_version": 2},
    {"preprocessing__img_size": 16},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_hostile_metadata_is_refused(changes: dict[str, Any], tmp_path: Path, base: Path) -> None:
    _, delta = tuned(tmp_path, base, head_only)
    with safetensors.safe_open(str(delta), "pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field:
            metadata[part][field] = value
            if field in ("img_size", "in_chans") and part == "config":
                metadata["preprocessing"][field] = value
        else:
            metadata[part] = value
    save_file(load_file(delta), delta, {METADATA_KEY: json.dumps(metadata)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as refused:
        load_delta(delta, base)
    assert "\n" not in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("change", ["nan", "half", "missing", "extra", "shape", "cut", "nested"])
def test_hostile_tensors_are_refused(change: str, tmp_path: Path, base: Path) -> None:
    _, delta = tuned(tmp_path, base, head_only)
    tensors = load_file(delta)
    with safetensors.safe_open(str(delta), "pt") as file:
        metadata = file.metadata()
    if change == "nan":
        tensors["head.bias"][0] = torch.nan
    elif change == "half":
        tensors["head.bias"] = tensors["head.bias"].half()
    elif change == "missing":
        del tensors["head.bias"]
    elif change == "extra":
        tensors["blocks.7.mlp.fc1.weight"] = torch.ones(1)
    elif change == "shape":
        tensors["head.bias"] = torch.ones(7)
    elif change == "nested":
        metadata = {METADATA_KEY: "[" * 200_000}
    save_file(tensors, delta, metadata)
    if change == "cut":
        delta.write_bytes(delta.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a readable KANsformer weights file") as refused:
        load_delta(delta, base)
    assert str(delta) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_fingerprint_is_of_names_shapes_and_values() -> None:
    a, b = torch.arange(6.0), torch.ones(2)
    reference = fingerprint({"a": a, "b": b})
    assert reference == fingerprint({"b": b.clone(), "a": a.clone()})
    assert reference == fingerprint({"a": torch.stack([a, a], 1)[:, 0], "b": b})
    others = [
        {"a": a}, {"a": b, "b": a}, {"a": a.reshape(2, 3), "b": b}, {"a": a, "c": b},
        {"a": a, "b": torch.tensor([1.0, 1.0000001])}, {},
    ]  # fmt: skip
    assert len({reference, *map(fingerprint, others)}) == 1 + len(others)


def test_a_weights_file_need_not_come_from_a_run(tmp_path: Path, base: Path) -> None:
    model, _ = load_for_classes(str(base), NAMES, ffn="group-kan", img_size=16)
    assert isinstance(model, VisionTransformer)
    best, delta = tmp_path / "best.safetensors", tmp_path / "delta.safetensors"
    save_model(best, model, Preprocessing(16, 3), NAMES, temperature=0.7)
    assert save_delta(delta, best, base).base is not None
    assert load_delta(delta, base).temperature == 0.7
