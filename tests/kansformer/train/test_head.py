"""The head is scikit-learn's logistic regression on the features, in the model's own form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kansformer.checkpoint import load_model
from kansformer.data import Preprocessing, load_data
from kansformer.errors import UserError
from kansformer.train import loop
from kansformer.train.distributed import Ranks
from kansformer.train.features import Extractor, Features
from kansformer.train.head import fit_head, logistic_regressions
from models.vit_model import VisionTransformer, create_model
from tests.conftest import tiny_settings
from tests.kansformer.pretrained import foreign
from tests.kansformer.train.runs import do, prepared, same, state, stop_after

ONE = Ranks(0, 1, torch.device("cpu"))


def blobs(count: int, classes: int, seed: int, width: int = 6) -> Features:
    """Overlapping clouds of points. The channels differ widely in scale, and one is constant."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=count)
    centers = np.random.default_rng(1).normal(size=(classes, width))
    values = centers[labels] + random.normal(size=(count, width))
    values = values * 10.0 ** np.arange(-2, width - 2) + 3
    values[:, 0] = 5
    return Features(values.astype(np.float32), labels)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_classifier_is_that_of_scikit_learn(classes: int, balanced: bool) -> None:
    train, val = blobs(200, classes, 0), blobs(80, classes, 1)
    results = logistic_regressions(train, val, classes, balanced)
    assert len(results) > 5
    for row, classifier in results:
        reference = make_pipeline(
            StandardScaler(),
            LogisticRegression(
                C=row["c"], max_iter=5000, tol=1e-8, class_weight="balanced" if balanced else None
            ),
        ).fit(train.values.astype(float), train.labels)
        logits = torch.from_numpy(classifier(val.values))
        expected = reference.predict_proba(val.values.astype(float))
        np.testing.assert_allclose(logits.softmax(1), expected, atol=5e-3)
        loss = -np.log(expected[np.arange(len(val)), val.labels]).mean()
        assert row["val_loss"] == pytest.approx(loss, abs=5e-3)
        assert row["val_acc1"] == pytest.approx(
            100 * (logits.argmax(1).numpy() == val.labels).mean()
        )


def test_a_class_without_pictures_is_not_predicted() -> None:
    train, val = blobs(100, 2, 0), blobs(50, 2, 1)
    spread = np.array([0, 3])  # of four classes, 1 and 2 have no pictures
    results = logistic_regressions(Features(train.values, spread[train.labels]),
                                   Features(val.values, spread[val.labels]), 4)  # fmt: skip
    for _, classifier in results:
        assert set(classifier(val.values).argmax(1)) <= {0, 3}


def features_of(model: VisionTransformer, data_path: Path, folder: Path) -> tuple[Any, Any]:
    data = load_data(str(data_path)).with_validation(0.3, 0)
    extract = Extractor(model, Preprocessing(16), folder, ONE, 0, print)
    return extract(data.train), extract(data.val)


@pytest.mark.parametrize(
    "config",
    [{}, {"distilled": True}, {"pool": "avg", "fc_norm": True}, {"head": "kan", "head_hidden": 8}],
    ids=str,
)
def test_the_fitted_head_is_in_the_model(
    tmp_path: Path, colors: Path, config: dict[str, object]
) -> None:
    model = create_model("vit_micro_patch8_16", num_classes=3, depth=1, **config).eval()
    train, val = features_of(model, colors, tmp_path / "run")
    pools = [config["pool"]] if "pool" in config else ["token", "avg", "both"]
    fit = fit_head(model, train, val, pools[:1] if "distilled" in config else pools)
    assert model.config.pool == fit.pool
    data = load_data(str(colors)).with_validation(0.3, 0)
    images = torch.stack([Preprocessing(16)(data.val.open(i)) for i in range(len(data.val))])
    with torch.no_grad():
        logits = model(images)
    labels = torch.from_numpy(data.val.labels)
    assert 100 * float((logits.argmax(1) == labels).float().mean()) == pytest.approx(fit.val_acc1)
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert loss == pytest.approx(fit.val_loss, abs=1e-4)
    assert fit.val_acc1 > 90
    chosen = min(fit.tried, key=lambda row: row["val_loss"])
    assert chosen["pool"] == fit.pool
    json.dumps(fit.to_dict(), allow_nan=False)


def test_too_few_pictures_are_refused() -> None:
    model = create_model("vit_micro_patch8_16", num_classes=3, depth=1)
    some, none = blobs(9, 3, 0), Features(np.empty((0, 0), np.float32), np.empty(0, int))
    single = Features(some.values, np.zeros(9, int))
    for train, val in ((some, none), (none, some), (single, some)):
        with pytest.raises(UserError, match="--no-head-first"):
            fit_head(model, train, val, ["token"])


@pytest.fixture
def vit(tmp_path: Path) -> str:
    """A weights file of a ViT with another head than the pictures need."""
    return str(foreign.timm_vit(tmp_path / "deit.pth", "model", img_size=16).path)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tune_head_takes_no_steps(
    tmp_path: Path, colors: Path, vit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "compute_gradient", None)
    lines: list[str] = []
    config = tiny_settings(colors, tmp_path / "out", weights=vit, ffn="group-kan", tune="head",
                           ema=0.9, mixup=0.2)  # fmt: skip
    summary = do(config, lines.append)
    (row,) = rows(tmp_path / "out")
    fit = json.loads((tmp_path / "out" / "config.json").read_text())["weights"]["head"]
    assert row["val_acc1"] == summary["val_acc1"] == pytest.approx(fit["val_acc1"])
    assert row["val_loss"] == pytest.approx(fit["val_loss"], abs=1e-4)
    assert row["train_loss"] == pytest.approx(fit["train_loss"])
    untouched = prepared(tiny_settings(colors, tmp_path / "x", weights=vit, ffn="group-kan"))
    for name, tensor in load_model(tmp_path / "out" / "best.safetensors").state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(tensor, untouched.model.state_dict()[name]), name
    again = do(tiny_settings(colors, tmp_path / "b", weights=vit, ffn="group-kan",
                             freeze_layers=True), lines.append)  # fmt: skip
    assert again["val_loss"] == summary["val_loss"]
    assert not (tmp_path / "b" / "features").exists()  # it has read those beside it


def test_training_starts_from_the_fitted_head(tmp_path: Path, colors: Path, vit: str) -> None:
    config = tiny_settings(colors, tmp_path / "out", weights=vit)
    run = prepared(config)
    fit = run.load_report["head"]
    assert run.model.config.pool == run.config.pool == fit["pool"]
    best = min(fit["tried"], key=lambda row: row["val_loss"])
    result = loop.evaluate(run.model, run.val_loader, torch.device("cpu"))
    assert result["acc1"] == pytest.approx(best["val_acc1"])
    given = prepared(tiny_settings(colors, tmp_path / "a", weights=vit, pool="avg"))
    assert given.model.config.pool == "avg"
    assert {row["pool"] for row in given.load_report["head"]["tried"]} == {"avg"}
    for changes in ({"head_first": False}, {"head_first": False, "freeze_layers": True}):
        plain = prepared(tiny_settings(colors, tmp_path / "b", weights=vit, **changes))
        assert "head" not in plain.load_report
        assert plain.model.config.pool == "token"
        assert plain.steps > 0


def test_fine_tuning_that_makes_it_worse_leaves_the_fitted_head(
    tmp_path: Path, colors: Path, vit: str
) -> None:
    settings = {"weights": vit, "pool": "token"}
    lines: list[str] = []
    worse = {"epochs": 2, "lr": 0.3, "clip_grad": 0.0, "warmup_epochs": 0.0}
    summary = do(tiny_settings(colors, tmp_path / "out", **worse, **settings), lines.append)
    do(tiny_settings(colors, tmp_path / "head", tune="head", **settings))
    kept, head = (
        load_model(tmp_path / name / "best.safetensors").state_dict() for name in ("out", "head")
    )
    assert all(torch.equal(kept[name], head[name]) for name in head)
    history = rows(tmp_path / "out")
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert history[0]["val_loss"] == pytest.approx(rows(tmp_path / "head")[0]["val_loss"], abs=1e-4)
    assert (summary["best_epoch"], summary["epochs"]) == (0, 2)
    assert summary["seconds"] == pytest.approx(sum(row["seconds"] for row in history))
    assert any(line.startswith("best epoch 0, the head alone") for line in lines)
    with pytest.raises(loop.Stopped):
        stop_after(1, lambda: do(tiny_settings(colors, tmp_path / "cut", **worse, **settings)))
    do(tiny_settings(colors, tmp_path / "cut", resume=True, **worse, **settings))
    assert [row["epoch"] for row in rows(tmp_path / "cut")] == [0, 1, 2]


def test_a_head_that_is_kept_is_not_fitted(tmp_path: Path, colors: Path, trained: Path) -> None:
    weights = str(trained / "best.safetensors")
    run = prepared(tiny_settings(colors, tmp_path / "a", weights=weights))
    assert "head" not in run.load_report
    run = prepared(tiny_settings(colors, tmp_path / "b", weights=weights, tune="head"))
    assert "head" in run.load_report


@pytest.mark.parametrize("pool", [None, "both"])
def test_a_kill_and_a_resumption_change_no_bit(
    tmp_path: Path, colors: Path, vit: str, pool: str | None
) -> None:
    settings = {"weights": vit, "epochs": 2, "pool": pool, "feature_views": 2}
    do(tiny_settings(colors, tmp_path / "whole", **settings))
    with pytest.raises(loop.Stopped):
        stop_after(2, lambda: do(tiny_settings(colors, tmp_path / "killed", **settings)))
    do(tiny_settings(colors, tmp_path / "killed", resume=True, **settings))
    assert same(state(tmp_path / "whole"), state(tmp_path / "killed"))
    saved = state(tmp_path / "whole")
    width = 2 if saved["config"]["pool"] == "both" else 1
    assert saved["model"]["head.weight"].shape[1] == width * saved["config"]["embed_dim"]
    assert pool in (None, saved["config"]["pool"])
