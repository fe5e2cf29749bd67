"""--tune: exactly the parts that were named train, in every way to run; the others keep their bits.

Which parameters a part has is compared with a list made here from the kinds of modules.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kansformer.checkpoint import load_model
from kansformer.errors import UserError
from kansformer.train.configure import configure
from kansformer.train.find_lr import find_learning_rate
from kansformer.train.optimizer import AdamW
from kansformer.train.recipes import FINE_TUNING, PART_TUNING
from kansformer.train.step import compute_gradient
from kansformer.train.tune import describe_trained, train_only, trained_names
from models.kan import GroupKANLinear, KANLinear
from models.vit_model import VisionTransformer, create_model
from tests.conftest import tiny_settings
from tests.kansformer.train.runs import TRICKS, do, final, prepared, same, state, stop_after
from tests.processes import run_ranks

PARTS = ("head", "splines", "norms", "biases")
MIXED = ("splines", "head", "norms", "biases", "splines,head", "head,norms,biases", "all")
MODELS: dict[str, dict[str, Any]] = {
    "distilled": {"distilled": True},
    "pre_logits": {"pre_logits": True},
    "fc_norm": {"pool": "avg", "fc_norm": True},
    "layer_scale": {"layer_scale": 0.1, "ffn": "group-kan"},
    "kan": {"ffn": "kan", "kan_bias": True, "head": "kan"},
    "conv": {"ffn": "group-kan", "stem": "conv", "reg_tokens": 2},
}


def of_part(model: VisionTransformer, part: str) -> set[str]:
    """The parameters of a part, by the kinds of the modules that hold them."""
    names = set()
    for prefix, module in model.named_modules():
        kind, top = type(module).__name__, prefix.split(".")[0]
        for short, _ in module.named_parameters(prefix, recurse=False):
            last = short.rsplit(".", 1)[-1]
            layer = isinstance(module, KANLinear | GroupKANLinear) and last.startswith("spline_")
            if {
                "head": top in ("head", "head_dist", "pre_logits", "norm", "fc_norm"),
                "splines": layer and top == "blocks",
                "norms": "Norm" in kind or kind == "LayerScale",
                "biases": last == "bias",
                "all": True,
            }[part]:
                names.add(short)
    return names | ({n for n, _ in model.named_parameters()} if part == "all" else set())


def named(model: VisionTransformer, tune: str) -> set[str]:
    return set().union(*(of_part(model, part) for part in tune.split(",")))


@pytest.mark.parametrize("tune", MIXED)
@pytest.mark.parametrize("name", MODELS)
def test_a_part_is_what_its_modules_hold(name: str, tune: str) -> None:
    model = create_model("vit_micro_patch4_8", num_classes=3, **MODELS[name])
    names = trained_names(model, frozenset(tune.split(",")))
    assert set(names) == named(model, tune)
    train_only(model, names)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == names
    total = sum(p.numel() for p in model.parameters())
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = describe_trained(model, frozenset(tune.split(",")))
    assert text.startswith(f"{count:,} of {total:,} parameters: ")


def test_a_small_group_kan_has_two_thousand_spline_coefficients() -> None:
    with torch.device("meta"):
        model = create_model("vit_small_patch16_224", ffn="group-kan", num_classes=2)
    text = describe_trained(model, frozenset({"splines"}))
    assert text.startswith("2,112 of ")
    assert text.endswith(": splines of 12 blocks")


@pytest.fixture
def best(trained: Path) -> str:
    """A weights file with splines and all classes of the pictures, whose head is kept."""
    return str(trained / "best.safetensors")


@pytest.mark.parametrize("tune", MIXED)
def test_only_these_parts_change(tune: str, tmp_path: Path, colors: Path, best: str) -> None:
    """The weights and their average; the others get no gradient and no optimizer state."""
    base = load_model(best)
    lines: list[str] = []
    settings = {"weights": best, "tune": tune, "head_first": False, "ema": 0.5}
    config = tiny_settings(colors, tmp_path / "out", epochs=1, **settings)
    summary = do(config, lines.append)
    saved, names = state(tmp_path / "out"), named(base, tune)
    before = base.state_dict()
    for key in ("model", "average"):
        changed = {n for n, value in saved[key].items() if not torch.equal(before[n], value)}
        assert changed == names
    assert len(saved["optimizer"]["state"]) == len(names)
    count = sum(p.numel() for n, p in base.named_parameters() if n in names)
    assert summary["trained_parameters"] == count
    written = [line for line in lines if line.startswith("trains")]
    assert [line.split()[1] for line in written] == [f"{count:,}"] * (tune != "all")


def test_freeze_layers_is_tune_head(tmp_path: Path, colors: Path, best: str) -> None:
    for name, flags in (("old", {"freeze_layers": True}), ("new", {"tune": "head"})):
        do(tiny_settings(colors, tmp_path / name, epochs=2, weights=best, **flags))
    assert same(state(tmp_path / "old"), state(tmp_path / "new"))
    rates = []
    for flags in ({"freeze_layers": True}, {"tune": "head"}, {"tune": "head,norms"}, {}):
        config, _ = configure({"data_path": str(colors), "weights": best, "device": "cpu", **flags})
        rates.append((config.lr, config.layer_decay, config.ema))
    given = [(part["lr"], part.get("layer_decay", 1.0), part["ema"])
             for part in (PART_TUNING, FINE_TUNING)]  # fmt: skip
    assert rates[0] == rates[1]
    assert rates[2:] == given
    assert len(set(rates)) == 3


def test_blocks_unfreeze_from_the_last(tmp_path: Path, colors: Path, best: str) -> None:
    model = create_model("vit_micro_patch4_8", num_classes=3)
    everything = {n for n, _ in model.named_parameters()}
    for unfrozen, first in ((0, 4), (1, 3), (4, 0), (9, 0)):
        frozen = everything - set(trained_names(model, frozenset({"head"}), unfrozen))
        blocks = {int(name.split(".")[1]) for name in frozen if name.startswith("blocks.")}
        assert blocks == set(range(first))
        assert ("pos_embed" in frozen) == (first > 0)
    settings = {"weights": best, "freeze_layers": True}
    config = tiny_settings(colors, tmp_path / "a", epochs=3, unfreeze_every=1, **settings)
    lines: list[str] = []
    summary = do(config, lines.append)
    texts = [line.split(": ")[1] for line in lines if line.startswith("trains")]
    head = "head and last norm"
    assert texts == [head, f"{head}, the last block", f"{head}, the last 2 blocks"]
    old, new = load_model(best).state_dict(), final(tmp_path / "a")
    still = {n for n in old if n.startswith(("blocks.0.", "blocks.1.", "patch", "pos", "cls"))}
    grids = {n for n in old if n.endswith(".grid")}
    assert {n for n in old if torch.equal(old[n], new[n])} == still | grids
    left = sum(value.numel() for n, value in old.items() if n not in still | grids)
    assert summary["trained_parameters"] == left


@pytest.mark.parametrize("tune", MIXED)
def test_a_resumed_run_ends_with_the_same_bits(
    tune: str, tmp_path: Path, colors: Path, best: str
) -> None:
    settings = {"weights": best, "tune": tune, "head_first": False, **TRICKS}
    do(tiny_settings(colors, tmp_path / "whole", **settings))
    with pytest.raises(BaseException, match="stopped at epoch 2, step 2"):
        stop_after(5, lambda: do(tiny_settings(colors, tmp_path / "parts", **settings)))
    do(tiny_settings(colors, tmp_path / "parts", **settings, resume=True))
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_a_refined_spline_stays_frozen(tmp_path: Path, colors: Path, best: str) -> None:
    """Its coefficients are new parameters, which would train."""
    settings = {"weights": best, "tune": "norms", "refine_grid": ((1, 12),)}
    do(tiny_settings(colors, tmp_path / "whole", **settings))
    with pytest.raises(BaseException, match="stopped at epoch 3"):
        stop_after(8, lambda: do(tiny_settings(colors, tmp_path / "parts", **settings)))
    do(tiny_settings(colors, tmp_path / "parts", **settings, resume=True))
    saved = state(tmp_path / "whole")
    assert same(saved, state(tmp_path / "parts"))
    model = load_model(best)
    assert len(saved["optimizer"]["state"]) == len(named(model, "norms"))


@pytest.mark.parametrize(
    "extra", [{"tune": "splines,head"}, {"tune": "biases"}, {"freeze_layers": True,
                                                           "unfreeze_every": 1}]
)  # fmt: skip
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_tune_and_resume(
    shard: bool, extra: dict[str, Any], tmp_path: Path, colors: Path, best: str
) -> None:
    settings = {"weights": best, "batch_size": 4, "shard": shard, **extra}
    whole = tiny_settings(colors, tmp_path / "whole", **settings)
    assert run_ranks(lambda: do(whole), log=tmp_path / "log") == [0, 0], (
        tmp_path / "log.0"
    ).read_text()
    parts = tiny_settings(colors, tmp_path / "parts", **settings)
    stopping = run_ranks(lambda: stop_after(5, lambda: do(parts)), log=tmp_path / "log")
    assert stopping == [143, 143], (tmp_path / "log.0").read_text()
    again = tiny_settings(colors, tmp_path / "parts", **settings, resume=True)
    assert run_ranks(lambda: do(again), log=tmp_path / "log") == [0, 0], (
        tmp_path / "log.0"
    ).read_text()
    states = [state(tmp_path / name) for name in ("whole", "parts")]
    for saved in states:  # a resumed sharded optimizer has them in another order
        saved["optimizer"]["state"] = dict(sorted(saved["optimizer"]["state"].items()))
    assert same(*states)
    old, new = load_model(best), final(tmp_path / "whole")
    if "tune" in extra:
        changed = {n for n, value in old.state_dict().items() if not torch.equal(value, new[n])}
        assert changed == named(old, extra["tune"])


@pytest.mark.parametrize("tune", ["splines", "head,norms,biases"])
def test_a_compiled_model_trains_the_same_parts(
    tune: str, tmp_path: Path, colors: Path, best: str
) -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    compile_ = nn.Module.compile
    settings = {"epochs": 1, "weights": best, "tune": tune}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "compile", lambda self: compile_(self, backend=backend))
        do(tiny_settings(colors, tmp_path / "compiled", compile=True, **settings))
    assert calls
    do(tiny_settings(colors, tmp_path / "plain", **settings))
    old, new, plain = load_model(best), final(tmp_path / "compiled"), final(tmp_path / "plain")
    changed = {n for n, value in old.state_dict().items() if not torch.equal(value, new[n])}
    assert changed == named(old, tune)
    assert max(float((new[n] - plain[n]).abs().max()) for n in new) < 1e-4


@pytest.mark.parametrize("tune", ["splines", "head,norms,biases", "all"])
def test_the_rate_is_searched_with_the_parts_that_train(
    tune: str, tmp_path: Path, colors: Path, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kansformer.train.find_lr.TRIALS", 4)
    run = prepared(tiny_settings(colors, tmp_path / "out", weights=best, tune=tune))
    stepped: set[int] = set()
    step = AdamW.step

    def watched(self: AdamW, *arguments: Any) -> Any:
        parameters = (p for group in self.param_groups for p in group["params"])
        stepped.update(id(p) for p in parameters if p.grad is not None)
        return step(self, *arguments)

    monkeypatch.setattr(AdamW, "step", watched)
    find_learning_rate(run)
    names = {n for n, p in run.model.named_parameters() if id(p) in stepped}
    assert names == named(run.model, tune)


def test_weight_decay_and_clipping_leave_frozen_parts(
    tmp_path: Path, colors: Path, best: str
) -> None:
    settings = {"weights": best, "tune": "splines,head", "epochs": 1}
    settings |= {"weight_decay": 0.9, "spline_decay": 0.9, "clip_grad": 0.01}
    do(tiny_settings(colors, tmp_path / "out", **settings))
    old, new = load_model(best), final(tmp_path / "out")
    changed = {n for n, value in old.state_dict().items() if not torch.equal(value, new[n])}
    assert changed == named(old, "splines,head")
    run = prepared(tiny_settings(colors, tmp_path / "other", **settings))
    train_only(run.model, trained_names(run.model, run.config.tuned))
    run.wrapped_model = run.model
    batch = next(iter(run.train_loader))
    compute_gradient(run, 0, [batch])
    for splines in (True, False):
        grads = [p.grad.norm() for n, p in run.model.named_parameters()
                 if p.grad is not None and (".spline_" in n) == splines]  # fmt: skip
        assert torch.stack(grads).norm() < 0.0101


def test_an_mlp_trains_the_parts_that_it_has(tmp_path: Path, colors: Path) -> None:
    do(tiny_settings(colors, tmp_path / "mlp", epochs=1, ffn="mlp"))
    settings = {"weights": str(tmp_path / "mlp" / "best.safetensors"), "epochs": 1}
    lines: list[str] = []
    both = tiny_settings(colors, tmp_path / "both", tune="head,splines", **settings)
    do(both, lines.append)
    warnings = [line for line in lines if line.startswith("warning")]
    assert warnings == [
        "warning: --tune head,splines: the model's blocks have no splines; the rest trains"
    ]
    do(tiny_settings(colors, tmp_path / "head", tune="head", **settings))
    assert same(state(tmp_path / "both"), state(tmp_path / "head"))
    do(tiny_settings(colors, tmp_path / "both", tune="head,splines", **settings, resume=True))
    with pytest.raises(UserError, match="--tune splines: the model's blocks have no splines"):
        do(tiny_settings(colors, tmp_path / "none", tune="splines", **settings))
    assert not (tmp_path / "none").exists()


def test_what_cannot_train_is_refused(tmp_path: Path, colors: Path, best: str) -> None:
    for changes, words in (
        ({"tune": "splines"}, "--tune splines needs --weights"),
        ({"tune": "eyes"}, "--tune must be one or several of all, head"),
        ({"tune": ""}, "--tune must be one or several of all, head"),
        ({"weights": best, "tune": "norms", "freeze_layers": True}, "not --tune norms"),
        ({"weights": best, "tune": "norms", "unfreeze_every": 1}, "--unfreeze-every needs"),
        ({"weights": best, "unfreeze_every": 1}, "--unfreeze-every needs"),
        ({"save_delta": True}, "--save-delta needs --weights"),
    ):
        with pytest.raises(UserError, match=words):
            tiny_settings(colors, tmp_path / "out", **changes)
    tiny_settings(colors, tmp_path / "out", weights=best, tune="head", unfreeze_every=1)
    (colors / "yellow").mkdir()
    for picture in (colors / "red").iterdir():
        (colors / "yellow" / picture.name).write_bytes(picture.read_bytes())
    config = tiny_settings(
        colors, tmp_path / "out", weights=best, tune="splines,norms", head_first=False
    )
    with pytest.raises(UserError, match=r"leave the head random.*--tune splines,norms,head"):
        do(config)
    assert not (tmp_path / "out").exists()
