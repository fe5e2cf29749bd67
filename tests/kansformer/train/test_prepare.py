"""What a run is prepared with."""

from dataclasses import replace
from pathlib import Path

import pytest

from kansformer.data import load_data
from kansformer.train.prepare import choose_workers
from tests.conftest import tiny_settings


def test_pictures_are_read_by_a_process_per_core_of_the_rank(
    colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = load_data(str(colors)).train
    monkeypatch.setattr("kansformer.train.prepare.usable_cores", lambda: 6)
    config = tiny_settings(colors, "x", workers=None)
    assert choose_workers(config, pictures) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert choose_workers(config, pictures) == 2
    assert choose_workers(config, pictures.cached()) == 0
    assert choose_workers(replace(config, workers=5), pictures.cached()) == 5
