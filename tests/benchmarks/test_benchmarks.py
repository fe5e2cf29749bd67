"""The benchmarks run, and what they compare with computes the same; how fast is not asked here."""

import pytest
import torch

from benchmarks import bench_kan, bench_step, measure
from benchmarks.textbook import TextbookKANLinear
from models.kan import KANLinear
from tests.models.test_kan import random_layer


def test_the_textbooks_layer_computes_the_same() -> None:
    layer = random_layer()
    x = torch.randn(5, 40, 3)
    torch.testing.assert_close(TextbookKANLinear(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_saved_bytes_are_those_kept_beyond_the_parameters() -> None:
    x = torch.randn(100, 3, requires_grad=True)
    assert measure.saved_bytes(torch.nn.Linear(3, 5), x) == x.nbytes
    both = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Sigmoid())
    assert measure.saved_bytes(both, x) == x.nbytes + 100 * 5 * 4
    assert measure.saved_bytes(KANLinear(3, 5, mode="eager"), x) == x.nbytes + 3 * 12 * 4  # knots


def test_peak_bytes_are_those_held_at_one_time() -> None:
    def job() -> None:
        for size in (3, 10, 5):
            first = torch.zeros(size * 2**18)
            second = first.exp()
            del first
            second.neg_()
            del second

    assert measure.peak_bytes(job) == 2 * 10 * 2**20


def test_a_paired_ratio_ignores_what_slows_a_whole_round() -> None:
    assert measure.paired_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 0.5


@pytest.mark.parametrize("mode", ["eager", "plain"])
def test_the_error_is_measured_on_what_the_layer_computes(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < bench_kan.largest_error(mode, 3, 7, "cpu") < 2e-6
    monkeypatch.setattr(
        bench_kan, "cox_de_boor", lambda x, knots, order: torch.zeros(len(x), 1, 7 + order)
    )
    assert bench_kan.largest_error(mode, 3, 7, "cpu") > 0.1


def test_the_step_benchmark_trains_each_contender() -> None:
    records = bench_step.measured("tiny", 32, 16, batch=2, repeats=1, device="cpu")
    assert len(records) == 7
    assert all(record["step_ms"] > 0 for record in records)
    twin = bench_step.contenders("tiny", 32, 16)["MLP twin"]
    step = bench_step.training_step(twin, (4, 3, 32, 32), bench_step.CLASSES, "cpu")
    losses = [float(step()) for _ in range(8)]
    assert losses[-1] < losses[0]
