"""The study counts what it says: rates by validation, pairs by seed, each training once."""

import argparse
import json
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scipy import stats
from torch import nn

from benchmarks.study import ablations, comparison, repeat, tables
from benchmarks.study import jobs as jobs_module
from benchmarks.study.arms import ARMS, BASELINE, RATES
from benchmarks.study.jobs import Job, append, read, run
from benchmarks.study.sets import SETS
from kansformer.data import PictureData, load_data
from kansformer.errors import UserError
from kansformer.train import TrainConfig
from kansformer.train.build import build_model
from kansformer.train.config import add_flags
from kansformer.train.optimizer import make_optimizer

SIZES = {"train": 9, "val": 8, "test": 7}


def record(job: Job, accuracy: float, loss: float = 1.0) -> dict[str, Any]:
    return {
        "job": json.loads(job.key), "pictures": SIZES, "parameters": 5, "flops_per_image": 1,
        "seconds": 1.0, "lr": job.settings["lr"], "epochs": job.settings["epochs"],
        "val_acc1": accuracy, "val_loss": loss, **({"test_acc1": accuracy} if job.test else {}),
    }  # fmt: skip


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "digits.jsonl").write_text(lines)


def by_rate(best: dict[str, float]) -> list[dict[str, Any]]:
    """What choosing gives where these rates are the best ones."""
    return [
        record(job, 90.0 if job.settings["lr"] == best[job.arm] else 80.0)
        for job in comparison.choosing("digits")
    ]


def test_rates_are_chosen_by_accuracy_and_then_by_loss() -> None:
    jobs = comparison.choosing("digits")
    assert not any(job.test for job in jobs)
    assert {job.seed for job in jobs}.isdisjoint(range(SETS["digits"].seeds))
    records = {job.key: record(job, 80.0, loss=job.settings["lr"]) for job in jobs}
    assert set(comparison.rates_by_validation("digits", records).values()) == {min(RATES)}
    for job in jobs:
        if job.arm == "mlp" and job.settings["lr"] == RATES[1]:
            records[job.key]["val_acc1"] = 81.0
        if job.arm == "kan" and job.settings["lr"] == RATES[2]:  # good once, bad on average
            records[job.key]["val_acc1"] = 90.0 if job.seed == jobs[0].seed else 60.0
    rates = comparison.rates_by_validation("digits", records)
    assert rates.pop("mlp") == RATES[1]
    assert set(rates.values()) == {min(RATES)}


def test_at_equal_time_blocks_are_as_wide_as_a_step_of_the_mlp_allows() -> None:
    def line(full: int, start: float, slope: float, *off: float) -> dict[str, Any]:
        widths = comparison.widths(full)
        noise = off or (0.0,) * len(widths)
        step_ms = {str(n): start + slope * n + x for n, x in zip(widths, noise, strict=True)}
        return {"hidden": full, "step_ms": step_ms}

    noise = (0.3, -0.6, 0.3, 0.0, 0.0, 0.3, -0.6, 0.3)  # no straight line through it, and no step
    arms = {
        "mlp": line(384, 2, 8 / 384, *noise),
        "kan": line(39, 7.8, 0.1),
        "group-kan": line(384, 1, 8 / 384),
        "vision_kansformer": line(64, 11, 0.1 / 8),
    }
    sizes = comparison.sizes_by_time({"arms": arms})
    assert all(sizes["equal size"][arm]["settings"] == {} for arm in ARMS)
    steps = [sizes[title][arm]["step_ms"] for title in sizes for arm in ARMS]
    assert steps == pytest.approx([10.0, 11.7, 9.0, 11.8, 10.0, 10.2, 9.0, 11.1])
    assert {arm: size["settings"] for arm, size in sizes["equal training time"].items()} == {
        "mlp": {},
        "kan": {"kan_hidden": 24, "match": "none"},  # at 10.2 of 10 ms
        "group-kan": {},
        "vision_kansformer": {"kan_hidden": 8, "match": "none"},  # not even then
    }
    data = load_data("digits")
    for arm, full, narrow in (("kan", 39, 16), ("group-kan", 384, 144)):
        for hidden in (full, narrow):
            job = comparison.job_of("digits", arm, 0, comparison.of_width(arm, full, hidden))
            model, _, _ = build_model(TrainConfig(data_path="digits", **job.settings), data)
            assert model.config.ffn_hidden == hidden, arm


def test_steps_are_timed_on_the_models_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(steps: dict[Any, Any], rounds: int, device: str) -> dict[Any, list[float]]:
        return {(arm, n): [2.0 + n] for arm, n in steps}

    monkeypatch.setattr(comparison.measure, "interleaved", timed)
    arms = comparison.step_times("digits", tmp_path)["arms"]
    eight = {str(n): 2.0 + n for n in range(48, 385, 48)}
    assert arms["mlp"] == arms["group-kan"] == {"hidden": 384, "step_ms": eight}
    few = {str(n): 2.0 + n for n in (8, 16, 24, 32, 39)}
    assert arms["kan"] == {"hidden": 39, "step_ms": few}


def test_a_training_is_done_once(tmp_path: Path) -> None:
    short = {**SETS["digits"].settings, "epochs": 1, "max_steps": 1, "lr": 1e-3}
    job = Job("digits", "mlp", 3, {**short, "ffn": "mlp", "grid_range": (-1.0, 1.0)})
    path = tmp_path / "digits.jsonl"
    found = run([job, job], path, tmp_path, at_once=1)
    assert list(found) == [job.key]
    assert found[job.key]["seed"] == 3
    assert len(found[job.key]["history"]["val_acc1"]) == 1
    assert 0 <= found[job.key]["test_acc1"] <= 100
    before = path.read_text()
    with path.open("a") as file:
        file.write(before[:100])  # the machine stopped while it wrote
    assert read(path) == run([job], path, tmp_path, at_once=1)
    assert path.read_text() == before + before[:100]
    other = Job("digits", "mlp", 4, job.settings)
    append(record(other, 50.0), path)
    assert set(read(path)) == {job.key, other.key}


def test_the_places_and_how_many_at_once_can_be_told(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    comparison.add_flags(parser)
    given = ["--at-once", "3", "--places", str(tmp_path), "--results", str(tmp_path / "r")]
    told = vars(parser.parse_args(given))
    assert told == {"at_once": 3, "places": tmp_path, "results": tmp_path / "r"}


def test_a_training_that_fails_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--at-once must be at least 1, not 0"):
        run([], tmp_path / "digits.jsonl", tmp_path, at_once=0)
    begun: list[Future[Any]] = []

    class Pool(ProcessPoolExecutor):
        def submit(self, *work: Any, **named: Any) -> Future[Any]:
            begun.append(super().submit(*work, **named))
            return begun[-1]

    monkeypatch.setattr(jobs_module, "ProcessPoolExecutor", Pool)
    settings = {**SETS["digits"].settings, "lr": -1.0}
    jobs = [Job("digits", "mlp", seed, settings) for seed in range(30)]
    with pytest.raises(UserError, match="--lr must be at least 0"):
        run(jobs, tmp_path / "digits.jsonl", tmp_path, at_once=1)
    assert begun[-1].cancelled()
    assert not (tmp_path / "digits.jsonl").exists()


def test_the_table_is_made_of_the_trainings_that_belong_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["tables", "--results", str(tmp_path)])
    with pytest.raises(UserError, match="no results"):
        tables.main()
    rates = dict.fromkeys(ARMS, RATES[0]) | {"kan": RATES[1]}
    arms = {arm: {"hidden": 384, "step_ms": {"48": 2.0, "384": 3.0}} for arm in ARMS}
    arms["kan"] = {"hidden": 39, "step_ms": {"8": 1.0, "39": 9.0}}
    times = {"arms": arms, "machine": {"device": "a processor", "torch": "3.0"}}
    (tmp_path / "digits.steps.json").write_text(json.dumps(times))
    both = comparison.sizes_by_time(times).values()
    jobs = [job for sizes in both for job in comparison.jobs("digits", rates, sizes)]
    wanted = {job.key: job for job in jobs}

    def accuracy(job: Job) -> float:
        gain = {"mlp": 0.0, "kan": -1.0 if "kan_hidden" in job.settings else 1.0}
        return 90.0 + job.seed + gain.get(job.arm, 2.0)

    records = [record(job, accuracy(job)) for job in wanted.values()]
    other = [record(Job("digits", "kan", seed, {**job.settings, "lr": 1.0}), 0.0)
             for seed, job in enumerate(wanted.values())]  # fmt: skip
    no_rates, one_missing = records, [*by_rate(rates), *records[:-1]]
    for unfinished in (no_rates, one_missing):
        write(tmp_path, unfinished)
        text, pictures = tables.everything(tmp_path)
        assert "### digits\n\nNot complete: `python -m" in text
        assert not pictures
    write(tmp_path, [*by_rate(rates), *other, *records])
    found = tables.of_set("digits", tmp_path)
    assert found is not None
    lines = found[0].splitlines()
    assert "| equal size | mlp | 10 | 94.50 | 3.03 |  | 5 | 0.001 | 3 |" in lines
    assert "| equal size | kan | 10 | 95.50 | 3.03 | +1.00 (+1.00 to +1.00) |" in found[0]
    assert "| equal training time | kan | 10 | 93.50 | 3.03 | -1.00 (-1.00 to -1.00) |" in found[0]
    tables.main()
    assert (tmp_path / "tables.md").read_text() == f"{tables.LEGEND}\n{found[0]}"
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("shift", "status"), [(2.5, 0), (3.5, 1)])
def test_a_repeated_row_agrees_within_the_spread(
    shift: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["repeat", "digits", "--results", str(tmp_path)])
    rates = dict.fromkeys(ARMS, RATES[0])
    write(tmp_path, by_rate(rates))
    with pytest.raises(UserError, match="no complete results on digits"):
        repeat.main()
    jobs = comparison.jobs("digits", rates, comparison.FULL)
    write(tmp_path, [*by_rate(rates), *(record(job, 90.0 + job.seed) for job in jobs)])

    def trained(wanted: list[Job], *ways: object) -> dict[str, dict[str, Any]]:
        assert wanted == [job for job in jobs if job.seed in range(5)]
        gain = {"kan": shift}
        return {job.key: record(job, 92.5 + job.seed + gain.get(job.arm, 0)) for job in wanted}

    monkeypatch.setattr(repeat, "run", trained)
    assert repeat.main() == status
    out = capsys.readouterr().out
    assert "mlp: 94.50 % (spread 1.58), stated 94.50 (3.03): agrees" in out
    assert ("differs" in out) == bool(status)


def test_one_seed_is_too_few_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["repeat", "digits", "--seeds", "1"])
    with pytest.raises(UserError, match="--seeds must be at least 2"):
        repeat.main()


def test_changes_are_compared_with_what_they_change(tmp_path: Path) -> None:
    rows = ablations.rows()
    records = [
        record(job, 80.0 + seed + (title != ablations.PRESET) * (1 + seed) + 5 * (arm == "kan"))
        for arm, title, jobs in rows
        for seed, job in enumerate(jobs)
    ]
    path = tmp_path / "ablations.jsonl"
    first, *later = [
        one for one in records
        if one["job"]["arm"] == "kan" and one["job"]["settings"].get("kan_norm") is False
    ]  # fmt: skip
    sooner = [one for one in records if one not in (first, *later)]
    assert tables.of_ablations(tmp_path) is None
    for one in sooner[:-1]:
        append(one, path)
    text = tables.of_ablations(tmp_path)  # of the last arm as it is, a seed is missing
    assert text is not None
    assert "Not complete: `python -m benchmarks.study.ablations`" in text
    append(sooner[-1], path)
    text = tables.of_ablations(tmp_path)
    assert text is not None
    assert f"{len(rows) - 1} of {len(rows)} rows have been begun" in text
    assert "no norm" not in text
    append(first, path)
    text = tables.of_ablations(tmp_path)
    assert text is not None
    assert "| kan | no norm between its layers | 1 | 86.00 |  | +1.00 | +6.00 | 5 |" in text
    for one in later:
        append(one, path)
    text = tables.of_ablations(tmp_path)
    assert text is not None
    assert "| mlp | as it is | 3 | 81.00 | 1.00 |  |  | 5 |" in text
    assert "| kan | as it is | 3 | 86.00 | 1.00 |  | +5.00 (+5.00 to +5.00) |" in text
    low, high = stats.t.interval(0.95, 2, loc=2, scale=1 / 3**0.5)
    change = f"| 88.00 | 2.00 | +2.00 ({low:+.2f} to {high:+.2f}) |"
    assert f"| kan | no norm between its layers | 3 {change}" in text


def test_every_change_makes_another_model_or_another_training() -> None:
    data = load_data("digits")
    for arm, changes in ablations.CHANGES.items():
        seen = set()
        for change in changes.values():
            job = comparison.job_of("digits", arm, 0, change)
            config = TrainConfig(data_path="digits", **job.settings)
            model, _, _ = build_model(config, data)
            seen.add((repr(model), repr(config)))
        assert len(seen) == len(changes), arm


def test_splines_learn_at_the_rates_that_the_ablations_name() -> None:
    data = load_data("digits")
    for arm, rate in ablations.SPLINE_RATES.items():
        rates = []
        for own in ({}, {"spline_lr": rate}):
            settings = comparison.job_of("digits", arm, 0, own).settings
            config = TrainConfig(data_path="digits", **settings)
            model, _, _ = build_model(config, data)
            rates.append(
                [group["lr_scale"] for group in make_optimizer(model, config).param_groups]
            )
        assert rates[0] == rates[1], arm


def test_the_other_projects_blocks_are_what_its_flags_say() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = "--grid-range -1 1 --no-kan-norm --kan-init efficient-kan --head kan --kan-hidden 64"
    flags += " --stem patch"
    given = vars(parser.parse_args(["--data-path", "digits", "--ffn", "kan", *flags.split()]))
    arm = comparison.job_of("digits", "vision_kansformer", 0, {}).settings
    overrides = TrainConfig(data_path="digits", **arm).model_overrides()
    assert TrainConfig(**given).model_overrides() == overrides | {"grid_range": [-1.0, 1.0]}
    model, _, _ = build_model(TrainConfig(data_path="digits", **arm), load_data("digits"))
    for layers in (*(block.mlp for block in model.blocks), model.head):
        assert isinstance(layers.norm, nn.Identity)
        for layer in (layers.fc1, layers.fc2):
            assert (layer.init, layer.grid_range) == ("efficient-kan", (-1, 1))
        assert layers.fc1.out_features == 64


def test_the_stated_tables_are_what_the_raw_results_give() -> None:
    text, pictures = tables.everything(comparison.RESULTS)
    assert (comparison.RESULTS / "tables.md").read_text() == text
    assert set(pictures) == {path.stem for path in comparison.RESULTS.glob("*.png")}
    assert len(pictures) == len(SETS) - 1, "all but what the ablations train on"


def test_the_documented_tables_are_the_stated_one() -> None:
    """docs/study.md has all rows; the READMEs have those at equal size."""
    root = Path(__file__).parents[2]
    stated = (comparison.RESULTS / "tables.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in stated.splitlines()]
    rows = [row for row in rows if row[:1] in ([comparison.EQUAL_SIZE], [comparison.EQUAL_TIME])]
    assert len(rows) == 2 * len(ARMS) * (len(SETS) - 1)  # the ablations' set is not among them
    study, english, chinese = (
        (root / name).read_text(encoding="utf-8")
        for name in ("docs/study.md", "README.md", "README.zh-CN.md")
    )
    for first in range(0, len(rows), len(ARMS)):
        cells = [
            mean if arm == BASELINE else f"{mean} ({apart.split('(')[1]}"
            for _, arm, _, mean, _, apart, *_ in rows[first : first + len(ARMS)]
        ]
        line = f"| {' | '.join(cells)} |"
        assert line in study
        if rows[first][0] == comparison.EQUAL_SIZE:
            assert line in english
            assert line.replace(" to ", " 至 ") in chinese


def test_the_results_are_of_models_as_they_are_made_now() -> None:
    """A default that has changed since would make them those of something else."""
    seen = []
    for path in comparison.RESULTS.glob("*.jsonl"):
        for found in read(path).values():
            config = TrainConfig(data_path="x", **found["job"]["settings"])
            made = (config.model, config.match, config.model_overrides(), found["model"])
            if made in seen:
                continue
            seen.append(made)
            data = SimpleNamespace(
                in_chans=found["model"]["in_chans"], class_names=["x"] * found["classes"]
            )
            model, _, _ = build_model(config, cast(PictureData, data))
            now = json.loads(json.dumps(model.config.to_dict()))
            refined = ("grid_size", "grid_sizes") if config.refine_grid else ()  # in training
            was = {name: value for name, value in found["model"].items() if name not in refined}
            assert {name: now[name] for name in was} == was
    assert seen
