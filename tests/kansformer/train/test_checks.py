"""Settings that cannot work are refused before a run, and then nothing is written."""

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from kansformer.checkpoint import load_model, save_model
from kansformer.data import Preprocessing, load_data
from kansformer.errors import UserError
from kansformer.train.config import TrainConfig
from models.vit_model import create_model
from tests.conftest import tiny_settings, write_folder
from tests.kansformer.train.runs import do, final

FLOATS = [
    name
    for name, kind in get_type_hints(TrainConfig).items()
    if float in {kind, *get_args(kind)} or tuple[float, float] in get_args(kind)
]


@pytest.mark.parametrize(
    "changes",
    [
        {"refine_grid": ((1, 2),)},
        {"refine_grid": ((1, 5),)},
        {"refine_grid": ((1, 0),)},
        {"refine_grid": ((-1, 10),)},
        {"refine_grid": ((0, 10),)},
        {"refine_grid": ((3, 10),)},
        {"refine_grid": ((1, 10), (2, 8))},
        {"refine_grid": ((1, 10), (1, 20))},
        {"update_grid_every": 3},
        {"update_grid_every": 2, "update_grid_until": 1},
        {"time_budget": 0.0},
        {"seed": -1},
        {"seed": 2**64},
        {"augment": "none of these"},
        {"eval_metric": "f1"},
        {"amp": "int8"},
        {"match": "size"},
        {"update_grid_until": 0},
        {"teacher": "no such file"},
        {"weights": "no such file"},
        {"grid_range": (3.0, 1.0)},
        {"kan_hidden": 0},
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_and_nothing_is_written(
    changes: dict[str, Any], tmp_path: Path, colors: Path
) -> None:
    with pytest.raises(UserError) as refused:
        do(tiny_settings(colors, tmp_path / "new" / "out", epochs=3, **changes))
    text, name = str(refused.value), next(iter(changes))
    assert "\n" not in text
    assert any(part in text for part in (f"--{name.replace('_', '-')}", name, "no such file"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_numbers_are_finite(name: str, value: float) -> None:
    setting = {field.name: field for field in fields(TrainConfig)}[name]
    given: Any = (value, 1.0) if name == "grid_range" else value
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be finite"):
        tiny_settings("x", Path("y"), **{setting.name: given})


def test_a_width_that_is_no_number(command: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = command("train", "--data-path", "digits", "--kan-hidden", "wide")
    assert status == 2
    assert "--kan-hidden: 'wide': give a whole number or full" in err


def test_unfreezing_after_the_last_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--unfreeze-every 3: the run has 3 epochs"):
        tiny_settings("x", tmp_path, weights="w", freeze_layers=True, unfreeze_every=3)


def test_refinement_is_checked_against_the_grids_of_the_weights(
    tmp_path: Path, colors: Path
) -> None:
    model = create_model("kansformer_micro_patch8_16", num_classes=3, grid_size=12)
    names = load_data(str(colors)).class_names
    save_model(tmp_path / "fine.safetensors", model, Preprocessing(16), names)
    settings = {"weights": str(tmp_path / "fine.safetensors"), "epochs": 2, "max_steps": 1}
    with pytest.raises(UserError, match="--refine-grid: 10 intervals, not more than the 12"):
        do(tiny_settings(colors, tmp_path / "out", refine_grid=((1, 10),), **settings))
    assert not (tmp_path / "out").exists()
    do(tiny_settings(colors, tmp_path / "out", refine_grid=((1, 24),), **settings))


def few(tmp_path: Path) -> Path:
    """Two pictures of each of three classes; half of them validate."""
    return write_folder(tmp_path / "few", 2)


@pytest.mark.parametrize(
    "changes",
    [{"grid_size": 5}, {"grid_size": 2, "refine_grid": ((1, 5),)}],
)
def test_too_few_pictures_for_the_heads_grids(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The head's layers see one token per picture: a grid of G intervals needs G + 1 pictures."""
    settings = {"head": "kan", "val_split": 0.5, "update_grid_every": 1, "epochs": 4, **changes}
    with pytest.raises(UserError, match="--update-grid-every: 3 pictures cannot fit"):
        do(tiny_settings(few(tmp_path), tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_enough_pictures_for_the_heads_grids(tmp_path: Path) -> None:
    settings = {"head": "kan", "val_split": 0.5, "update_grid_every": 1, "epochs": 3}
    summary = do(tiny_settings(few(tmp_path), tmp_path / "out", grid_size=2, **settings))
    assert summary["epochs"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"calibrate_grid": True},
        {"update_grid_every": 1},
        {"refine_grid": ((1, 10),)},
        {"spline_penalty": 0.1},
        {"spline_lr": 2.0},
        {"spline_decay": 0.1},
    ],
)
def test_settings_of_splines_have_no_effect_on_an_mlp_and_give_a_warning(
    changes: dict[str, Any], tmp_path: Path, colors: Path
) -> None:
    settings = {"ffn": "mlp", "epochs": 2, "max_steps": 1}
    lines: list[str] = []
    do(tiny_settings(colors, tmp_path / "with", **settings, **changes), lines.append)
    flag = f"--{next(iter(changes)).replace('_', '-')}"
    assert f"warning: {flag} has no effect: the model has no splines" in lines
    do(tiny_settings(colors, tmp_path / "without", **settings))
    ours, theirs = final(tmp_path / "with"), final(tmp_path / "without")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines.clear()
    do(
        tiny_settings(colors, tmp_path / "kan", **{**settings, "ffn": "kan"}, **changes),
        lines.append,
    )
    assert not any("no effect" in line for line in lines)


def test_batches_that_cannot_be_mixed_give_a_warning(tmp_path: Path, colors: Path) -> None:
    for size, warned in ((7, True), (8, False)):
        lines: list[str] = []
        config = tiny_settings(
            colors, tmp_path / str(size), batch_size=size, mixup=0.4, epochs=1, max_steps=1
        )
        do(config, lines.append)
        assert any("batches of odd size" in line for line in lines) == warned


@pytest.mark.parametrize("share", [0.0, -1.0, 2.0])
def test_the_share_that_validates_matters_only_without_val(tmp_path: Path, share: float) -> None:
    data = tmp_path / "data"
    write_folder(data / "train", 4)
    write_folder(data / "val", 2, first_seed=50)
    summary = do(tiny_settings(data, tmp_path / "out", epochs=1, val_split=share))
    assert summary["pictures"] == {"train": 12, "val": 6, "test": 0}
    with pytest.raises(UserError, match="--val-split must lie between 0 and 1") as refused:
        do(tiny_settings(data / "train", tmp_path / "other", val_split=share))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_created_is_refused_before_the_run(
    tmp_path: Path, colors: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cannot be created .* choose another --output"):
            do(tiny_settings(colors, output))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_without_results_is_refused(tmp_path: Path, colors: Path) -> None:
    with pytest.raises(UserError, match="--device meta: not available here"):
        do(tiny_settings(colors, tmp_path / "out", device="meta"))


def test_valid_settings_are_accepted(tmp_path: Path, colors: Path) -> None:
    config = tiny_settings(
        colors, tmp_path / "a" / "b", epochs=3, refine_grid=((2, 20), (1, 10)),
        update_grid_every=2, head="kan", time_budget=60.0,
    )  # fmt: skip
    do(config)
    assert load_model(tmp_path / "a" / "b" / "best.safetensors")
