"""Several processes compute what one does; one that stops or dies does not ruin the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kansformer.checkpoint import load_model, save_model
from kansformer.data import PictureDataset, Preprocessing, TrainingSampler, load_data, make_loader
from kansformer.evaluate import evaluate
from kansformer.train import find_lr, loop
from kansformer.train.distributed import process_group
from kansformer.train.run_folder import checksum
from models.vit_model import create_model
from tests.conftest import ROOT, tiny_settings, write_folder
from tests.kansformer.pretrained import foreign
from tests.kansformer.train.runs import do, final
from tests.processes import run_ranks, start, start_ranks, status_of


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.usefixtures("sgd")
@pytest.mark.parametrize("extra", [{}, {"accumulate": 2, "balanced_sampler": True, "ema": 0.9}])
def test_two_ranks_are_one_with_the_double_batch(
    tmp_path: Path, colors: Path, extra: dict[str, Any]
) -> None:
    settings = {"epochs": 5, "max_steps": 2, "warmup_epochs": 0.0, "lr": 0.02, **extra}
    size = 4 // extra.get("accumulate", 1)
    do(tiny_settings(colors, tmp_path / "one", batch_size=2 * size, **settings))
    double = tiny_settings(colors, tmp_path / "two", batch_size=size, **settings)
    assert run_ranks(lambda: do(double), log=tmp_path / "log") == [0, 0]
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert furthest(one, two) < 1e-6  # after 10 steps
    assert (
        furthest(one, create_model("kansformer_micro_patch8_16", num_classes=3).state_dict()) > 0.01
    )
    rows = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1])
            for n in ("one", "two")]  # fmt: skip
    for key in ("train_loss", "val_loss", "val_acc1"):
        assert rows[0][key] == pytest.approx(rows[1][key], abs=1e-5)
    assert not (tmp_path / "log.1").read_text(), "only the first rank prints"


def test_two_ranks_fit_the_head_of_one(tmp_path: Path, colors: Path) -> None:
    weights = str(foreign.timm_vit(tmp_path / "deit.pth", "model", img_size=16).path)
    settings = {"weights": weights, "tune": "head", "feature_views": 2}
    one = do(tiny_settings(colors, tmp_path / "a" / "one", **settings))
    double = tiny_settings(colors, tmp_path / "b" / "two", **settings)
    assert run_ranks(lambda: do(double), log=tmp_path / "log") == [0, 0]
    two = json.loads((tmp_path / "b" / "two" / "summary.json").read_text())
    assert one["head"]["pool"] == two["head"]["pool"]
    assert one["val_loss"] == pytest.approx(two["val_loss"], abs=1e-4)
    assert furthest(final(tmp_path / "a" / "one"), final(tmp_path / "b" / "two")) < 1e-3
    files = list((tmp_path / "b" / "two" / "features").iterdir())
    assert len(files) == 6  # of training pictures, of a view of them, of validation: 2 ranks each


@pytest.mark.usefixtures("steady_adam")
@pytest.mark.parametrize("ffn", ["kan", "group-kan"])
def test_a_sharded_model_trains_like_whole_ones(tmp_path: Path, colors: Path, ffn: str) -> None:
    settings = {"epochs": 3, "batch_size": 4, "ffn": ffn, "ema": 0.8}
    for name, shard in (("whole", False), ("shards", True)):
        config = tiny_settings(colors, tmp_path / name, shard=shard, **settings)
        assert run_ranks(lambda c=config: do(c), log=tmp_path / "log") == [0, 0], (
            tmp_path / "log.0"
        ).read_text()
    assert furthest(final(tmp_path / "whole"), final(tmp_path / "shards")) < 1e-5
    for name in ("whole", "shards"):  # collecting the state must not count as a step of Adam's
        moments = torch.load(tmp_path / name / "last.pt", weights_only=True)["optimizer"]["state"]
        assert {float(moment["step"]) for moment in moments.values()} == {9.0}
    best = [load_model(tmp_path / name / "best.safetensors") for name in ("whole", "shards")]
    assert furthest(*(dict(model.state_dict()) for model in best)) < 1e-5
    states = [
        torch.load(tmp_path / name / "last.pt", weights_only=True)["progress"]["history"][-1]
        for name in ("whole", "shards")
    ]
    assert states[0]["val_loss"] == pytest.approx(states[1]["val_loss"], abs=1e-5)


@pytest.mark.parametrize("ffn", ["kan", "mlp"])
def test_sharded_ranks_restore_their_first_state(tmp_path: Path, colors: Path, ffn: str) -> None:
    settings = {"epochs": 1, "batch_size": 4, "ffn": ffn, "shard": True}

    def searched() -> None:
        find_lr.TRIALS = 20
        do(tiny_settings(colors, tmp_path / "searched", find_lr=True, **settings))

    def diverged() -> None:
        loop.BAD_STEPS = 2
        compute_gradient, bad = loop.compute_gradient, iter(range(2))

        def patched(*arguments: Any) -> Any:
            total, norm, count = compute_gradient(*arguments)
            return (total if next(bad, None) is None else total * float("inf")), norm, count

        loop.compute_gradient = patched
        do(tiny_settings(colors, tmp_path / "diverged", lr=10 * rate, **settings))

    assert run_ranks(searched, log=tmp_path / "log") == [0, 0], (tmp_path / "log.0").read_text()
    summary = json.loads((tmp_path / "searched" / "summary.json").read_text())
    rate = summary["lr"]
    fixed = tiny_settings(colors, tmp_path / "fixed", lr=rate, **settings)
    assert run_ranks(lambda: do(fixed), log=tmp_path / "log") == [0, 0]
    assert furthest(final(tmp_path / "searched"), final(tmp_path / "fixed")) < 1e-6
    assert run_ranks(diverged, log=tmp_path / "log") == [0, 0], (tmp_path / "log.1").read_text()
    assert furthest(final(tmp_path / "diverged"), final(tmp_path / "fixed")) < 1e-6


@pytest.mark.parametrize("shard", [False, True])
def test_a_signal_to_one_of_two_ranks(tmp_path: Path, colors: Path, shard: bool) -> None:
    settings = {"epochs": 3, "batch_size": 4, "drop_path_rate": 0.2, "mixup": 0.3, "shard": shard}
    whole = tiny_settings(colors, tmp_path / "whole", **settings)
    assert run_ranks(lambda: do(whole), log=tmp_path / "log") == [0, 0]

    def stopped() -> None:
        compute_gradient, left = loop.compute_gradient, iter(range(4))

        def patched(*arguments: Any) -> Any:
            if next(left, None) is None and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            return compute_gradient(*arguments)

        loop.compute_gradient = patched
        do(tiny_settings(colors, tmp_path / "parts", **settings))

    assert run_ranks(stopped, log=tmp_path / "log") == [143, 143]
    assert "stopped at epoch 2, step 2" in (tmp_path / "log.0").read_text()
    again = tiny_settings(colors, tmp_path / "parts", **settings, resume=True)
    assert run_ranks(lambda: do(again), log=tmp_path / "log") == [0, 0]
    states = [
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts")
    ]
    for key in ("model", "optimizer"):
        assert checksum(states[0][key]) == checksum(states[1][key])


def test_a_signal_to_one_rank_in_evaluation(tmp_path: Path, colors: Path) -> None:
    def stopped() -> None:
        evaluate_, rank = loop.evaluate, os.environ["RANK"]

        def patched(*arguments: Any) -> Any:
            if rank == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate_(*arguments)

        loop.evaluate = patched
        do(tiny_settings(colors, tmp_path / "out", batch_size=4))

    assert run_ranks(stopped, log=tmp_path / "log") == [143, 143]
    assert "stopped at epoch 1, step 3" in (tmp_path / "log.0").read_text()
    assert (tmp_path / "out" / "last.pt").is_file()


@pytest.mark.parametrize(("count", "batch_size"), [(7, 2), (7, 100), (1, 1)])
def test_evaluation_on_two_ranks_is_that_on_one(
    tmp_path: Path, colors: Path, count: int, batch_size: int
) -> None:
    model = create_model("kansformer_micro_patch8_16", num_classes=3)
    pictures = load_data(str(colors)).train.take(torch.arange(0, 4 * count, 4).numpy())
    dataset = PictureDataset(pictures, Preprocessing(16))
    device = torch.device("cpu")
    expected = evaluate(model, make_loader(dataset, batch_size), device)

    def work() -> None:
        with process_group("cpu") as ranks:
            loader = make_loader(dataset, batch_size, rank=ranks.rank, world=ranks.world)
            result = evaluate(model, loader, device, ranks.gather)
        (tmp_path / f"{ranks.rank}.json").write_text(json.dumps(result))

    assert run_ranks(work) == [0, 0]
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result["count"] == expected["count"] == count
        assert result["acc1"] == expected["acc1"]
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_every_rank_has_its_part_of_each_step() -> None:
    labels = torch.arange(50).numpy() % 3
    whole = TrainingSampler(labels, 12, seed=3)
    parts = [
        TrainingSampler(labels, 3, accumulate=2, rank=rank, world=2, seed=3) for rank in range(2)
    ]
    assert [s.steps for s in (whole, *parts)] == [4, 4, 4]
    for step in range(4):
        indices = [index for part in parts for batch in part.batches(step) for _, index in batch]
        assert sorted(indices) == sorted(index for _, index in whole.batches(step)[0])
    for sampler in (whole, *parts):
        everything = list(sampler)
        sampler.first_step = 2
        assert len(everything) // 2 == len(sampler) == len(list(sampler))
        assert list(sampler) == everything[len(everything) // 2 :]


def test_a_killed_rank_is_restarted_and_the_job_finishes(tmp_path: Path) -> None:
    """torchrun --max-restarts 1 train.py, without --resume."""
    colors = write_folder(tmp_path / "colors")
    hook = tmp_path / "dies.py"
    hook.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import train\n"
        "from kansformer.errors import run_command\n"
        "from kansformer.train import loop\n"
        "compute_gradient, left = loop.compute_gradient, iter(range(4))\n"
        "def patched(*arguments):\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if next(left, None) is None and first and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return compute_gradient(*arguments)\n"
        "loop.compute_gradient = patched\n"
        "train.ROOT = Path.cwd()\n"
        "sys.exit(run_command(train.main))\n"
    )
    flags = (
        f"--data-path {colors} --output {tmp_path / 'out'} --model kansformer_micro_patch8_16"
        " --augment small --epochs 3 --batch-size 4 --workers 0 --device cpu --no-report"
        " --stem patch --lr 0.001 --warmup-epochs 2 --ema 0"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "1", str(hook), *flags.split()],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed after epoch 1" in done.stdout
    rows = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3]
    whole = tiny_settings(colors, tmp_path / "whole", batch_size=4, lr=1e-3, warmup_epochs=2.0)
    assert run_ranks(lambda: do(whole)) == [0, 0]
    assert checksum(final(tmp_path / "out")) == checksum(final(tmp_path / "whole"))


def test_a_rank_that_dies_ends_the_others(tmp_path: Path, colors: Path) -> None:
    def work() -> None:
        compute_gradient, left = loop.compute_gradient, iter(range(1))

        def patched(*arguments: Any) -> Any:
            if next(left, None) is None and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return compute_gradient(*arguments)

        loop.compute_gradient = patched
        do(tiny_settings(colors, tmp_path / "out", batch_size=4))

    began = time.monotonic()
    first, second = start_ranks(work, log=tmp_path / "log")
    assert status_of(second) == -signal.SIGKILL
    assert status_of(first, seconds=60) == 1  # not after the minutes of a timeout
    assert time.monotonic() - began < 60
    text = (tmp_path / "log.0").read_text()
    assert "failed: another process of this training has ended" in text
    assert "Traceback" not in text


def test_too_few_pictures_for_the_ranks(tmp_path: Path, colors: Path) -> None:
    config = tiny_settings(colors, tmp_path / "out", batch_size=20)
    assert run_ranks(lambda: do(config), log=tmp_path / "log") == [2, 2]
    assert "too few for a step of 40 on 2 processes" in (tmp_path / "log.0").read_text()


def test_a_state_dict_that_is_given_is_what_is_saved(tmp_path: Path) -> None:
    model = create_model("vit_micro_patch4_8", num_classes=2)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    save_model(tmp_path / "a.safetensors", model, Preprocessing(8), ["a", "b"], state=state)
    loaded = load_model(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_one_process_needs_no_group() -> None:
    def work() -> None:
        with process_group("cpu") as ranks:
            assert (ranks.rank, ranks.world, ranks.is_first) == (0, 1, True)
            assert ranks.gather(torch.tensor([1.0, 2.0])) == [[1.0, 2.0]]
            assert not torch.distributed.is_initialized()

    assert status_of(start(work)) == 0
