"""Hostile, broken and foreign files give an error of one line, and no code in them is run."""

import argparse
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelThingsBlock
from timm.models.vision_transformer import VisionTransformer as TimmViT

from kansformer.errors import UserError
from kansformer.pretrained import load_pretrained
from kansformer.pretrained.read import read_file
from tests.kansformer.pretrained import foreign
from tests.kansformer.pretrained.foreign import SIZES


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.mark}",))


def rejected(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_pretrained(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 700


def good_state() -> dict[str, torch.Tensor]:
    return foreign.perturb(TimmViT(**SIZES, num_classes=5)).state_dict()


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "tar"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_not_run(tmp_path: Path, suffix: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    plain, zipped = tmp_path / f"plain.{suffix}", tmp_path / f"zipped.{suffix}"
    plain.write_bytes(pickle.dumps(Evil(mark), protocol=protocol))
    torch.save({"model": good_state(), "extra": Evil(mark)}, zipped, pickle_protocol=protocol)
    # torch cannot parse pickles of protocol 4, which its save does not write
    words = "will not be run; save only the model's state_dict" if protocol == 2 else "damaged"
    rejected(zipped, words)
    rejected(plain, words)
    assert not mark.exists()
    pickle.loads(plain.read_bytes())  # the code works if it is run
    assert mark.exists()


def test_whole_modules_are_rejected_with_the_remedy(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    rejected(tmp_path / "module.pt", r"Linear.*save only the model's state_dict\(\)")


def test_trainers_arguments_do_no_harm(tmp_path: Path) -> None:
    state = {"model": good_state(), "args": argparse.Namespace(lr=0.1, data="x"), "epoch": 7}
    torch.save(state, tmp_path / "file.pth")
    _, report = load_pretrained(tmp_path / "file.pth")
    assert report.parameters["fresh"] == 0


def _object_arrays(path: Path) -> None:
    np.savez(path, **{"embedding/kernel": np.array([{"a": 1}], dtype=object)})


def _npy() -> bytes:
    packed = io.BytesIO()
    np.save(packed, np.ones(3))
    return packed.getvalue()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text.pth": (lambda p: p.write_text("hello\n" * 99), "truncated, or not"),
    "empty.pth": (lambda p: p.touch(), "not a readable file"),
    "empty.npz": (lambda p: p.touch(), "not a readable file"),
    "empty.safetensors": (lambda p: p.touch(), "not a readable file"),
    "text.npz": (lambda p: p.write_text("hello"), "not a readable file"),
    "array.npz": (lambda p: p.write_bytes(_npy()), "not a readable file"),
    "text.safetensors": (lambda p: p.write_text("hello"), "not a readable file"),
    "weights.h5": (lambda p: p.touch(), "does not end in .safetensors, .npz"),
    "dict.pth": (lambda p: torch.save({}, p), "its state dict is empty"),
    "nested.pth": (lambda p: torch.save({"model": {"state_dict": {}}}, p), "empty"),
    "tensor.pth": (lambda p: torch.save(torch.ones(3), p), "holds a Tensor, not a state dict"),
    "list.pth": (lambda p: torch.save([torch.ones(3)], p), "holds a list"),
    "numbers.pth": (lambda p: torch.save({"epoch": 3}, p), "'epoch' is not a tensor"),
    "keys.pth": (lambda p: torch.save({3: torch.ones(3)}, p), "'3' is not a tensor"),
    "resnet.pth": (
        lambda p: torch.save(timm.create_model("resnet18").state_dict(), p),
        "not a ViT in a known format; it has 122 tensors: bn1.bias",
    ),
    "objects.npz": (_object_arrays, "Object arrays cannot be loaded"),
    "alien.npz": (lambda p: np.savez(p, a=np.ones(3)), "not a ViT in a known"),
    "alien.safetensors": (
        lambda p: save_file({"x": torch.ones(3)}, p),
        "not a ViT in a known format",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_and_alien_files(name: str, tmp_path: Path) -> None:
    write, words = BROKEN[name]
    write(tmp_path / name)
    rejected(tmp_path / name, words)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    rejected(tmp_path / "missing.pth", "no such weights file")
    rejected(tmp_path, "a folder; give the weights file in it")


@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_truncated_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"whole.{suffix}"
    if suffix == "npz":
        foreign.jax(path)
    elif suffix == "pth":
        torch.save(good_state(), path)
    else:
        save_file(good_state(), path)
    data = path.read_bytes()
    for share in (0.02, 0.5, 0.98):
        path.write_bytes(data[: int(share * len(data))])
        rejected(path, "not a readable file")


WRONG: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "nan": (lambda s: s["norm.bias"].fill_(torch.nan), "norm.bias has values that are not finite"),
    "inf": (lambda s: s["cls_token"].fill_(torch.inf), "cls_token has values that are not finite"),
    "claimed": (
        lambda s: s.update(pos_embed=torch.zeros(1).expand(1, 10**6 + 1, 64)),
        "pos_embed is larger than its data",
    ),
    "many tokens": (
        lambda s: s.update(pos_embed=torch.zeros(1, 10**6 + 1, 1)), "1 to 16384 tokens are"
    ),
    "no square": (lambda s: s.update(pos_embed=torch.zeros(1, 20, 64)), "do not fit a square of"),
    "flat": (lambda s: s.update(pos_embed=torch.zeros(17, 64)), "positions of shape"),
    "scalar": (lambda s: s.update({"head.weight": torch.tensor(1.0)}), "not a readable file"),
    "empty": (lambda s: s.update({"patch_embed.proj.weight": torch.zeros(0, 3, 8, 8)}),
              "not a readable file"),
    "oblong": (lambda s: s.update({"patch_embed.proj.weight": torch.zeros(64, 3, 8, 4)}),
               "only square patches"),
    "integers": (lambda s: s.update(cls_token=torch.ones(1, 1, 64, dtype=torch.int64)),
                 "cls_token is of type torch.int64"),
    "sparse": (lambda s: s.update(cls_token=torch.ones(1, 1, 64).to_sparse()), "not a readable"),
    "width": (lambda s: s.update({"norm.weight": torch.ones(63)}), r"norm.weight has shape"),
    "missing": (lambda s: s.pop("blocks.1.norm1.bias"), "blocks.1.norm1.bias is missing"),
    "without positions": (lambda s: s.pop("pos_embed"), "it has no pos_embed"),
    "unexpected": (lambda s: s.update({"blocks.0.extra.weight": torch.ones(3)}),
                   "1 unexpected tensor: blocks.0.extra.weight"),
    "gap": (lambda s: [s.pop(n) for n in list(s) if n.startswith("blocks.0.")],
            "its 1 block must be numbered from 0"),
    "far block": (lambda s: s.update({"blocks.900.norm1.bias": torch.ones(64)}),
                  "must be numbered from 0"),
    "both names": (lambda s: s.update({"module.norm.bias": torch.ones(64)}), "contradict"),
    "odd width": (lambda s: s.update({"patch_embed.proj.weight": torch.zeros(65, 3, 8, 8)}),
                  "heads for its width 65; set num_heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors(name: str, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in good_state().items()}
    change, words = WRONG[name]
    change(state)
    torch.save(state, tmp_path / "file.pth")
    rejected(tmp_path / "file.pth", words)


def hf_swiglu(path: Path) -> Path:
    config = transformers.Dinov2Config(**foreign.HF_SIZES, use_swiglu_ffn=True)
    transformers.Dinov2Model(config).save_pretrained(path.parent)
    return path.parent / "model.safetensors"


def hf_activation(path: Path) -> Path:
    return foreign.hugging_face(path, "ViTModel", hidden_act="gelu_new").path


def of_timm(build: Callable[[], torch.nn.Module]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        torch.save(build().state_dict(), path)
        return path

    return write


UNSUPPORTED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "SwiGLU": (of_timm(lambda: TimmViT(**SIZES, mlp_layer=timm.layers.SwiGLU)), "SwiGLU"),
    "packed": (of_timm(lambda: TimmViT(**SIZES, mlp_layer=timm.layers.SwiGLUPacked)), "SwiGLU"),
    "HF SwiGLU": (hf_swiglu, "SwiGLU"),
    "HF activation": (hf_activation, "activation 'gelu_new'"),
    "qk-norm": (of_timm(lambda: TimmViT(**SIZES, qk_norm=True)), "qk-norm"),
    "CLIP": (of_timm(lambda: TimmViT(**SIZES, pre_norm=True)), "norm before the blocks"),
    "SigLIP": (of_timm(lambda: TimmViT(**SIZES, global_pool="map")), "attention pooling"),
    "parallel": (
        of_timm(lambda: TimmViT(**SIZES, block_fn=ParallelThingsBlock)), "parallel blocks"
    ),
    "EVA-02": (of_timm(lambda: Eva(**SIZES, use_rot_pos_emb=True)), "not supported: "),
    "BEiT": (of_timm(lambda: timm.create_model("beit_base_patch16_224", depth=1)),
             "not supported: "),
    "relative": (of_timm(lambda: timm.create_model("vit_relpos_small_patch16_224", depth=1)),
                 "relative positions"),
    "hybrid": (of_timm(lambda: timm.create_model("vit_tiny_r_s16_p8_224", depth=1)),
               "a convolutional stem"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_architectures_are_named(name: str, tmp_path: Path) -> None:
    write, words = UNSUPPORTED[name]
    rejected(write(tmp_path / "file.pth"), words)


def test_averaged_weights_are_preferred_and_16_bits_become_32(tmp_path: Path) -> None:
    state = good_state()
    average = {f"module._orig_mod.{name}": value.half() for name, value in state.items()}
    torch.save({"model": state, "model_ema": average, "optimizer": {"lr": 1}}, tmp_path / "f.pth")
    model, report = load_pretrained(tmp_path / "f.pth")
    assert torch.equal(model.norm.weight, state["norm.weight"].half().float())
    assert "taken from model_ema / module. / _orig_mod." in report.notes


@given(data=st.binary(max_size=300), suffix=st.sampled_from(["pth", "npz", "safetensors"]))
@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_bytes_are_rejected(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(data)
    with pytest.raises(UserError, match="file"):
        load_pretrained(path)


@given(position=st.floats(0, 1), new=st.binary(min_size=1, max_size=8))
@example(position=0.984375, new=b"\x01\x00\x00\x00\x00\x01")  # an archive on several disks
@settings(max_examples=80, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_a_changed_file_is_read_or_rejected(tmp_path: Path, position: float, new: bytes) -> None:
    path = tmp_path / "file.pth"
    torch.save({"norm.bias": torch.ones(2), "x": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    start = int(position * (len(data) - len(new)))
    data[start : start + len(new)] = new
    path.write_bytes(data)
    try:
        tensors = read_file(path).tensors
    except UserError:
        return
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())


def test_an_unreadable_config_beside_the_file_is_ignored(tmp_path: Path) -> None:
    reference = foreign.hugging_face(tmp_path / "x", "ViTModel")
    config = tmp_path / "config.json"
    for text in ("{", "[]", "[" * 10**5, json.dumps({"hidden_size": 32, "hidden_act": "relu"})):
        config.write_text(text)
        _, report = load_pretrained(reference.path)
        assert "assuming 1 attention head, the usual number for its width" in report.notes
    config.write_text(json.dumps({"hidden_size": 64, "num_attention_heads": "many"}))
    assert load_pretrained(reference.path)[0].config.num_heads == 1
