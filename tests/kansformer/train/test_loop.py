"""A run writes all its files, resumes to the same bits, and its settings have their effect."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kansformer.checkpoint import load_model
from kansformer.data import PictureDataset, load_data, make_loader
from kansformer.errors import JobFailed, UserError
from kansformer.train import loop, train
from kansformer.train.config import TrainConfig
from tests.conftest import COLORS, ROOT, tiny_settings, write_folder
from tests.kansformer.data.test_sources import fingerprint
from tests.kansformer.pretrained import foreign
from tests.kansformer.train.runs import final

CLOCKS = ("seconds", "images_per_second", "waiting")  # columns that differ between equal runs


def run(config: TrainConfig) -> tuple[dict[str, Any], list[str]]:
    """Trains; returns the summary and the printed lines."""
    lines: list[str] = []
    data = load_data(config.data_path).with_validation(config.val_split, config.seed)
    return train(config, data, lines.append, project_root=Path.cwd()), lines


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder / "best.safetensors").state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_files_of_a_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_folder(data / "train", 8)
    write_folder(data / "test", 3, first_seed=50)
    before = fingerprint(data)
    summary, lines = run(tiny_settings(data, tmp_path / "out", epochs=3))
    out = tmp_path / "out"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row.keys() >= {
            "epoch", "train_loss", "val_loss", "val_acc1", "lr", "images_per_second"
        }  # fmt: skip
        assert all(math.isfinite(value) for value in row.values())
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["val_acc1"] == max(row["val_acc1"] for row in rows)
    assert summary["parameters"] == sum(p.numel() for p in load_model(
        out / "best.safetensors").parameters())  # fmt: skip
    assert {"test_acc1", "flops_per_image", "seed", "versions"} <= summary.keys()
    names = dict(zip("012", sorted(COLORS), strict=True))
    for folder in (out, Path.cwd()):
        assert json.loads((folder / "class_indices.json").read_text()) == names
    assert json.loads((out / "config.json").read_text())["train"]["epochs"] == 3
    assert list((out / "tensorboard").glob("events.*"))
    with Image.open(out / "curves.png") as image:
        assert image.width > 500
    text = "\n".join(lines)
    for word in ("best epoch", "test accuracy", "next: python predict.py", "parameters"):
        assert word in text
    assert fingerprint(data) == before


def test_the_best_file_is_the_model_of_the_best_epoch(tmp_path: Path, colors: Path) -> None:
    # a rate that is too high, so that the best epoch is not the last
    config = tiny_settings(colors, tmp_path / "out", epochs=4, lr=0.1, lrf=1.0)
    summary, _ = run(config)
    model = load_model(tmp_path / "out" / "best.safetensors")
    assert model.training_info["epoch"] == summary["best_epoch"]
    assert model.class_names == tuple(sorted(COLORS))
    val = load_data(str(colors)).with_validation(0.2, 0).val
    loader = make_loader(PictureDataset(val, model.preprocessing), 8)
    measured = loop.evaluate(model, loader, torch.device("cpu"))
    assert measured["loss"] == pytest.approx(summary["val_loss"], rel=1e-5)
    assert measured["acc1"] == summary["val_acc1"]
    assert summary["best_epoch"] < 4


def test_weights_file_names_no_path(tmp_path: Path, colors: Path) -> None:
    run(tiny_settings(colors, tmp_path / "out", epochs=1))
    model = load_model(tmp_path / "out" / "best.safetensors")
    assert str(tmp_path) not in json.dumps(model.training_info)
    shipped = load_model(ROOT / "weights" / "digits.safetensors").training_info["settings"]
    assert not {"output", "data_path", "weights", "download_dir"} & shipped.keys()


def test_equal_seeds_give_equal_bits_and_others_do_not(tmp_path: Path, colors: Path) -> None:
    for name, seed, workers in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0)):
        run(tiny_settings(colors, tmp_path / name, seed=seed, workers=workers, epochs=2))
    assert equal(final(tmp_path / "a"), final(tmp_path / "b"))
    assert not equal(final(tmp_path / "a"), final(tmp_path / "c"))


@pytest.mark.parametrize("extra", [{}, {"mixup": 0.2, "cutmix": 1.0, "drop_path_rate": 0.2}])
def test_two_epochs_a_kill_and_two_more_are_four(
    tmp_path: Path, colors: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, float]
) -> None:
    whole = tiny_settings(colors, tmp_path / "whole", epochs=4, **extra)
    run(whole)
    with monkeypatch.context() as patch:
        calls = iter(range(9))

        def killed(*arguments: object) -> dict[str, float]:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return evaluate(*arguments)

        evaluate = loop.evaluate
        patch.setattr(loop, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_settings(colors, tmp_path / "parts", epochs=4, **extra))
    torch.manual_seed(99)
    np.random.seed(99)
    _, lines = run(tiny_settings(colors, tmp_path / "parts", epochs=4, resume=True, **extra))
    assert "resumed after epoch 2" in lines
    assert equal(final(tmp_path / "parts"), final(tmp_path / "whole"))
    assert equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    histories = [
        [{k: v for k, v in json.loads(line).items() if k not in CLOCKS}
         for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("parts", "whole")
    ]  # fmt: skip
    assert histories[0] == histories[1]


def test_an_earlier_run_is_not_overwritten_by_accident(tmp_path: Path, colors: Path) -> None:
    config = tiny_settings(colors, tmp_path / "out", epochs=1)
    run(config)
    before = fingerprint(tmp_path / "out")
    with pytest.raises(UserError, match="--overwrite"):
        run(config)
    with pytest.raises(UserError, match="--epochs is 2 now and was 1"):
        run(tiny_settings(colors, tmp_path / "out", epochs=2, resume=True))
    (colors / "blue").rename(colors / "zebra")  # the classes' order changes
    with pytest.raises(UserError, match="not those of the run to resume"):
        run(tiny_settings(colors, tmp_path / "out", epochs=1, resume=True))
    (colors / "zebra").rename(colors / "blue")
    with pytest.raises(JobFailed):  # a run that fails before it saves anything
        run(tiny_settings(colors, tmp_path / "out", lr=1e30, clip_grad=0.0, overwrite=True))
    assert fingerprint(tmp_path / "out") == before
    with pytest.raises(UserError, match="nothing to resume"):
        run(tiny_settings(colors, tmp_path / "new", resume=True))
    (tmp_path / "out" / "last.pt").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        run(tiny_settings(colors, tmp_path / "out", epochs=1, resume=True))
    summary, _ = run(tiny_settings(colors, tmp_path / "out", epochs=1, seed=3, overwrite=True))
    assert summary["seed"] == 3
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1


def test_starting_from_weights(tmp_path: Path, colors: Path, trained: Path) -> None:
    best = trained / "best.safetensors"
    config = tiny_settings(
        colors, tmp_path / "out", epochs=1, weights=str(best), freeze_layers=True, head_first=False
    )
    _, lines = run(config)
    assert any("tensors loaded" in line for line in lines)
    assert any(line.startswith("trains") and "head and last norm" in line for line in lines)
    old, new = weights(trained), final(tmp_path / "out")
    for name in old:
        frozen = not name.startswith(("head.", "norm."))
        assert torch.equal(old[name], new[name]) == frozen, name
    report = json.loads((tmp_path / "out" / "config.json").read_text())["weights"]
    assert report["fresh"] == []
    assert {name for name, fate in report["model"].items() if fate["status"] == "loaded"} == set(
        old
    )
    assert report["parameters"]["loaded"] == sum(p.numel() for p in load_model(best).parameters())


def test_starting_from_another_librarys_weights(tmp_path: Path, colors: Path) -> None:
    reference = foreign.timm_vit(tmp_path / "deit.pth", "model", img_size=16)
    config = tiny_settings(colors, tmp_path / "out", epochs=1, weights=str(reference.path))
    _, lines = run(config)
    assert any("deit.pth: DeiT; 30 tensors loaded" in line for line in lines)
    model = load_model(tmp_path / "out" / "best.safetensors")
    assert model.config.ffn == "mlp"
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    report = json.loads((tmp_path / "out" / "config.json").read_text())["weights"]
    assert report["fresh"] == ["head.weight", "head.bias"]
    assert report["preprocessing"]["mean"] == [0.485, 0.456, 0.406]

    again = tiny_settings(
        colors, tmp_path / "again", epochs=1, weights=str(reference.path), freeze_layers=True,
        preprocessing="half", img_size=24,
    )  # fmt: skip
    run(again)
    model = load_model(tmp_path / "again" / "best.safetensors")
    assert (model.preprocessing.mean, model.preprocessing.img_size) == (0.5, 24)


def test_a_narrow_kan_is_fitted_to_the_mlps_of_the_file(tmp_path: Path, colors: Path) -> None:
    run(tiny_settings(colors, tmp_path / "mlp", epochs=1, ffn="mlp"))
    settings = {"weights": str(tmp_path / "mlp" / "best.safetensors"), "ffn": "kan"}
    settings["distill_steps"] = 60
    config = tiny_settings(colors, tmp_path / "kan", epochs=1, max_steps=1, **settings)
    _, lines = run(config)
    assert any(line.startswith("fitted  R²") and "with the MLPs" in line for line in lines)
    report = json.loads((tmp_path / "kan" / "config.json").read_text())["weights"]["fitted"]
    assert len(report["r2"]) == 4
    assert min(report["r2"]) > 0.3
    config = tiny_settings(colors, tmp_path / "fresh", epochs=1, distill=False, **settings)
    _, lines = run(config)
    assert not any(line.startswith("fitted") for line in lines)
    summary = json.loads((tmp_path / "kan" / "summary.json").read_text())
    twin = json.loads((tmp_path / "mlp" / "summary.json").read_text())
    assert summary["mlp_twin"] == {k: twin[k] for k in ("parameters", "flops_per_image")}
    assert abs(summary["parameters"] / twin["parameters"] - 1) < 0.02


def test_match_chooses_the_width(tmp_path: Path, colors: Path) -> None:
    for by in ("params", "flops"):
        summary, lines = run(tiny_settings(colors, tmp_path / by, epochs=1, max_steps=1, match=by))
        key = {"params": "parameters", "flops": "flops_per_image"}[by]
        assert abs(summary[key] / summary["mlp_twin"][key] - 1) < 0.02
        assert any(line.startswith("twin") for line in lines)
    with pytest.raises(UserError, match="leave out --kan-hidden"):
        tiny_settings(colors, tmp_path / "x", match="params", kan_hidden=3)


def test_mean_and_std_without_weights(tmp_path: Path, colors: Path) -> None:
    for name, mean in ((None, 0.5), ("half", 0.5), ("imagenet", (0.485, 0.456, 0.406))):
        config = tiny_settings(
            colors, tmp_path / str(name), epochs=1, max_steps=1, preprocessing=name
        )
        run(config)
        model = load_model(tmp_path / str(name) / "best.safetensors")
        assert model.preprocessing.mean == mean


def test_settings_that_make_no_model_are_refused(tmp_path: Path, colors: Path) -> None:
    for changes, words in (
        ({"model": "resnet50"}, "unknown model"),
        ({"patch_size": 5}, "multiple of patch_size"),
        ({"output": str(colors / "out")}, "never written"),
        ({"device": "quantum"}, "--device quantum"),
    ):
        with pytest.raises(UserError, match=words):
            run(tiny_settings(colors, **{"output": tmp_path / "out", **changes}))
    for changes in (
        {"epochs": 0}, {"lr": -1.0}, {"lrf": 2.0}, {"label_smoothing": 1.5}, {"in_chans": 2},
        {"freeze_layers": True},
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"--{next(iter(changes)).replace('_', '-')}"):
            tiny_settings(colors, tmp_path / "out", **changes)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, colors: Path) -> None:
    run(tiny_settings(colors, tmp_path / "out", epochs=1))
    config = tiny_settings(
        colors, tmp_path / "bad", weights=str(tmp_path / "out" / "best.safetensors"),
        lr=1e30, clip_grad=0.0, warmup_epochs=0.0,
    )  # fmt: skip
    with pytest.raises(JobFailed, match="lower --lr"):
        run(config)


def test_one_channel_data_trains_models_of_one_and_three(tmp_path: Path) -> None:
    for in_chans in (None, 1, 3):
        config = tiny_settings(
            "digits", tmp_path / str(in_chans), model="kansformer_micro_patch4_8",
            in_chans=in_chans, epochs=1, max_steps=2,
        )  # fmt: skip
        run(config)
        model = load_model(tmp_path / str(in_chans) / "best.safetensors")
        assert model.config.in_chans == model.preprocessing.in_chans == (in_chans or 1)


def test_clipping_changes_the_run(tmp_path: Path, colors: Path) -> None:
    for clip, name in ((0.0, "free"), (1e9, "loose"), (1e-3, "tight")):
        run(tiny_settings(colors, tmp_path / name, epochs=1, clip_grad=clip))
    assert equal(final(tmp_path / "free"), final(tmp_path / "loose"))
    assert not equal(final(tmp_path / "free"), final(tmp_path / "tight"))


def test_a_set_smaller_than_an_odd_batch_trains(tmp_path: Path) -> None:
    colors = write_folder(tmp_path / "few", 4)
    summary, _ = run(tiny_settings(colors, tmp_path / "out", batch_size=50, mixup=0.3, epochs=1))
    assert summary["pictures"]["train"] % 2
