"""Weights in several files equal those in one; an index cannot lead out of its folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from kansformer.errors import UserError
from kansformer.pretrained import load_for_classes, load_pretrained
from tests.kansformer.pretrained import foreign
from tests.kansformer.pretrained.foreign import HF_SIZES

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model() -> transformers.ViTForImageClassification:
    labels = dict(enumerate(("ant", "bee", "cat")))
    config = transformers.ViTConfig(**HF_SIZES, id2label=labels)
    return foreign.perturb(transformers.ViTForImageClassification(config))


@pytest.fixture
def folder(model: transformers.ViTForImageClassification, tmp_path: Path) -> Path:
    """Shards written by transformers."""
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return tmp_path / "model"


def as_torch_files(folder: Path) -> None:
    """Rewrites the shards with torch.save, as older releases do."""
    index = json.loads((folder / INDEX).read_text())
    for path in folder.glob("*.safetensors"):
        torch.save(load_file(path), folder / f"pytorch_{path.stem}.bin")
        path.unlink()
    renamed = {n: f"pytorch_{Path(shard).stem}.bin" for n, shard in index["weight_map"].items()}
    text = json.dumps({**index, "weight_map": renamed})
    (folder / "pytorch_model.bin.index.json").write_text(text)
    (folder / INDEX).unlink()


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_shards_are_the_model(
    model: transformers.ViTForImageClassification, folder: Path, kind: str
) -> None:
    if kind == "torch":
        as_torch_files(folder)
    (index,) = folder.glob("*.index.json")
    x = torch.randn(2, 3, 32, 32)
    for path in (folder, index, str(index)):
        loaded, report = load_pretrained(path)
        assert report.fresh == ()
        assert report.format == "Hugging Face ViT"
        assert "settings were read from the config.json next to the file" in report.notes
        torch.testing.assert_close(loaded(x), model(x).logits, rtol=0, atol=1e-5)
    assert load_for_classes(folder, ("ant", "bee", "cat"))[1].fresh == ()


def test_links_of_the_hubs_cache_are_followed(folder: Path) -> None:
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(folder.iterdir()):
        shutil.move(path, blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert load_pretrained(folder)[1].fresh == ()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Writes a changed index: the value that `change` returns, or else the dict it edited."""

    def write(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(change(index) or index))

    return write


def renamed(name: str) -> Callable[[Path], Any]:
    """Renames the first shard in the index, and copies the file there if it is a valid path."""
    first = "model-00001-of-00009.safetensors"

    def write(folder: Path) -> None:
        if name in ("../x.safetensors", "sub/x.safetensors"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(folder / first, folder / name)
        edited(lambda i: i["weight_map"].update(
            {n: name for n, shard in i["weight_map"].items() if shard == first}
        ))(folder)  # fmt: skip

    return write


def add_to_last(name: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        path = max(folder.glob("*.safetensors"))
        save_file({**load_file(path), name: torch.ones(5)}, path)

    return write


OTHER_FOLDER = "does not name a weights file in its folder"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no shard": (lambda f: min(f.glob("*.safetensors")).unlink(), "model-00001-.* is missing"),
    "no shards": (
        lambda f: [path.unlink() for path in f.glob("*.safetensors")], "and 8 more are missing"
    ),
    "a damaged shard": (
        lambda f: min(f.glob("*.safetensors")).write_bytes(b"x"), "00001-of-00009.safetensors: not"
    ),
    "above": (renamed("../x.safetensors"), OTHER_FOLDER),
    "below": (renamed("sub/x.safetensors"), OTHER_FOLDER),
    "from the root": (renamed("/etc/x.safetensors"), OTHER_FOLDER),
    "Windows": (renamed("..\\x.safetensors"), OTHER_FOLDER),
    "a drive": (renamed("C:x.safetensors"), OTHER_FOLDER),
    "NUL": (renamed("x\0.safetensors"), OTHER_FOLDER),
    "a long name": (renamed(300 * "x" + ".safetensors"), OTHER_FOLDER),
    "no suffix": (renamed("config.json"), OTHER_FOLDER),
    "no text": (edited(lambda i: i["weight_map"].update({"classifier.bias": 3})), OTHER_FOLDER),
    "listed only": (
        edited(lambda i: i["weight_map"].update(more=i["weight_map"]["classifier.bias"])),
        "more is not in model-00001",
    ),
    "in two shards": (add_to_last("classifier.bias"), "classifier.bias is in model-00009-.*00001"),
    "not listed": (add_to_last("more"), "holds more, which the index does not list"),
    "no map": (edited(lambda i: {"metadata": {}}), "no weight_map"),
    "an empty map": (edited(lambda i: {"weight_map": {}}), "no weight_map"),
    "a list": (edited(lambda i: [1]), "no weight_map"),
    "no JSON": (lambda f: (f / INDEX).write_text("{"), "not an index of weights"),
    "deep": (lambda f: (f / INDEX).write_text("[" * 10**5), "not an index of weights"),
    "bytes": (lambda f: (f / INDEX).write_bytes(b"\xff\xfe"), "not an index of weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_index_is_one_line(name: str, folder: Path) -> None:
    write, words = WRONG[name]
    write(folder)
    with pytest.raises(UserError, match=words) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_code_in_a_shard_is_not_run(folder: Path) -> None:
    as_torch_files(folder)
    torch.save(torch.nn.Linear(2, 2), min(folder.glob("*.bin")))
    with pytest.raises(UserError, match="which will not be run"):
        load_pretrained(folder)
