"""The first batch of 200,000 pictures in 1,000 classes takes limited time and memory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, write_picture

CLASSES, PICTURES = 1_000, 200
# runs in a new process: measures time and memory from the data path to the first batch
CODE = """
import json, resource, sys, time
from kansformer.data import PictureDataset, Preprocessing, TrainingSampler, training_loader
from kansformer.data.augment import make_augmentation
from kansformer.train.configure import configure
from kansformer.train.run import fingerprint

def peak():
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 1e6

imports, started = peak(), time.monotonic()
findings = []
config, data = configure({"data_path": sys.argv[1]}, findings.append)
transform = make_augmentation(config.augment, Preprocessing(32))
sampler = TrainingSampler(data.train.labels, 64)
images, labels = next(iter(training_loader(PictureDataset(data.train, transform), sampler)))
fingerprint(data)
print(json.dumps({
    "seconds": time.monotonic() - started, "megabytes": peak() - imports,
    "train": len(data.train), "val": len(data.val), "classes": len(data.class_names),
    "findings": findings, "batch": list(images.shape),
}))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A few small pictures with 200,000 hard links; a file can have only about 60,000."""
    folder = tmp_path / "tree"
    for number in range(CLASSES):
        class_folder = folder / f"class {number:04}"
        if number % 250 == 0:
            original = tmp_path / f"{number}.jpg"
            write_picture(original, (90, 90, 90), number, size=32)
        class_folder.mkdir(parents=True)
        for i in range(PICTURES):
            os.link(original, class_folder / f"{i:04}.jpg")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.large
def test_first_batch_of_a_large_tree(tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tree)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["train"], result["val"], result["classes"]) == (160_000, 40_000, CLASSES)
    assert result["batch"] == [64, 3, 32, 32]
    for words in ("in several splits", "in several classes"):  # since the files are links
        assert any(words in finding for finding in result["findings"])
    assert result["seconds"] < 20
    assert result["megabytes"] < 500
