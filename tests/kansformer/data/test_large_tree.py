"""200,000 pictures in 1,000 classes are ready for their first batch in little time and memory."""

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
# run in a fresh process: from the path to the first batch, and what that took
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
    """One small picture under 200,000 names; a file has at most some 60,000 of them."""
    folder = tmp_path / "tree"
    for number in range(CLASSES):
        place = folder / f"class {number:04}"
        if number % 250 == 0:
            original = tmp_path / f"{number}.jpg"
            write_picture(original, (90, 90, 90), number, size=32)
        place.mkdir(parents=True)
        for i in range(PICTURES):
            os.link(original, place / f"{i:04}.jpg")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.large
def test_first_batch_of_a_large_tree(tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tree)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["train"], found["val"], found["classes"]) == (160_000, 40_000, CLASSES)
    assert found["batch"] == [64, 3, 32, 32]
    for words in ("in several splits", "in several classes"):  # it is one picture
        assert any(words in finding for finding in found["findings"])
    assert found["seconds"] < 20
    assert found["megabytes"] < 500
