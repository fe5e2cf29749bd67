"""One KAN layer at the shapes that vision transformers have: time, memory and exactness.

    python benchmarks/bench_kan.py --threads 2 --csv kan.csv --json kan.json

Measured in one process, in turns: this project's layer in each way to run, the textbook recursion,
the matrix product alone ("packed GEMM": an nn.Linear of nine times the inputs, whose features cost
nothing but the memory they are in), an nn.Linear of the layer's own size, and inkan and flashkan if
they are installed.
"""

import argparse
import copy
import csv
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import measure
from benchmarks.textbook import TextbookKANLinear, cox_de_boor
from models.engine.memory import workspace
from models.kan import KANLinear

SHAPES = [(4160, 192, 64), (4160, 64, 192), (1576, 768, 64), (1024, 192, 768)]  # rows, in, out
WAYS = ("compiled", "eager", "plain")
RANGE = (-3.0, 3.0)


def layers(width: int, out: int, grid_size: int) -> dict[str, nn.Module]:
    """All contenders for one shape, with equal grids."""
    ours = KANLinear(width, out, grid_size=grid_size, grid_range=RANGE)

    def copied(mode: str) -> KANLinear:
        layer = copy.deepcopy(ours)
        layer.mode = mode
        return layer

    found: dict[str, nn.Module] = {way: copied(way) for way in WAYS}
    if grid_size > 20:
        del found["plain"]  # takes gigabytes, and is meant for other things than training
    uneven = copied("compiled")
    uneven.update_grid(torch.randn(2048, width))
    found["compiled, uneven knots"] = uneven
    found["textbook"] = TextbookKANLinear(copied("plain"))
    features = grid_size + ours.spline_order + 1
    found["packed GEMM"] = PackedGEMM(width, out, features)
    found["nn.Linear"] = nn.Linear(width, out)
    for package in ("inkan", "flashkan"):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        found[package] = module.KANLayer(width, out, grid_size=grid_size, grid_range=RANGE)
    return found


class PackedGEMM(nn.Linear):
    """The matrix product alone, over features that cost nothing."""

    def __init__(self, width: int, out: int, features: int) -> None:
        super().__init__(width * features, out, bias=False)
        self.features = features


def measured_shape(
    rows: int, width: int, out: int, grid_size: int, repeats: int, device: str
) -> list[dict[str, Any]]:
    """One record per contender."""
    modules = {name: m.to(device) for name, m in layers(width, out, grid_size).items()}
    x = torch.randn(rows, width, device=device)
    grad = torch.randn(rows, out, device=device)

    def input_of(module: nn.Module) -> Tensor:
        features = module.features if isinstance(module, PackedGEMM) else 1
        return x.repeat(1, features).requires_grad_()

    def forward(module: nn.Module, x: Tensor) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> None:
            module(x)

        return run

    def train(module: nn.Module, x: Tensor) -> Callable[[], object]:
        def run() -> None:
            x.grad = None
            module.zero_grad()
            module(x).backward(grad)

        return run

    inputs = {name: input_of(module) for name, module in modules.items()}
    jobs = {}
    for name, module in modules.items():
        jobs[name, "forward"] = forward(module, inputs[name])
        jobs[name, "train"] = train(module, inputs[name])
    times = measure.interleaved(jobs, repeats, device)
    records = []
    for name, module in modules.items():
        low, median, high = measure.quartiles(times[name, "train"])
        saved = measure.saved_bytes(module, inputs[name])
        inputs[name].grad = None  # what the job makes counts in full,
        module.zero_grad()
        workspace.buffers.clear()  # and so do buffers that are kept
        peak = measure.peak_bytes(jobs[name, "train"])
        records.append({
            "rows": rows, "in": width, "out": out, "grid_size": grid_size, "layer": name,
            "forward_ms": measure.quartiles(times[name, "forward"])[1],
            "train_ms": median, "train_ms_q1": low, "train_ms_q3": high,
            "saved_share_of_x": saved / x.nbytes,
            "peak_mib": peak / 2**20,
            "times_packed_gemm": measure.paired_ratio(
                times[name, "train"], times["packed GEMM", "train"]
            ),
            "textbook_times_this": measure.paired_ratio(
                times["textbook", "train"], times[name, "train"]
            ),
        })  # fmt: skip
        if "inkan" in modules:
            records[-1]["inkan_times_this"] = measure.paired_ratio(
                times["inkan", "train"], times[name, "train"]
            )
        if name == "compiled, uneven knots":
            records[-1]["times_even_knots"] = measure.paired_ratio(
                times[name, "train"], times["compiled", "train"]
            )
    return records


@torch.no_grad()
def largest_error(way: str, order: int, grid_size: int, device: str) -> float:
    """Of the basis in float32, inside, at the knots and outside, against float64."""
    generator = torch.Generator().manual_seed(order * 1000 + grid_size)
    worst = 0.0
    for even in (True, False):
        layer = KANLinear(
            2, grid_size + order, grid_size=grid_size, spline_order=order, grid_range=RANGE,
            mode=way, enable_standalone_scale_spline=False,
        )  # fmt: skip
        if not even:
            gaps = 0.2 + torch.rand(layer.grid.shape, generator=generator)
            layer.grid.copy_(gaps.cumsum(dim=1) / gaps.sum(dim=1, keepdim=True) * 8 - 4)
        layer.base_weight.zero_()
        layer.spline_weight.zero_()
        layer.spline_weight[:, 0] = torch.eye(grid_size + order)
        points = torch.rand(4096, generator=generator) * 10 - 5
        knots = layer.grid[0]
        next_to = [torch.nextafter(knots, torch.full_like(knots, s)) for s in (-9.0, 9.0)]
        x = torch.cat([points, knots, *next_to])
        x = x[x != knots[-1]]  # where textbooks differ: the end of the last interval
        exact = cox_de_boor(x[:, None].double(), knots[None].double(), order)[:, 0]
        y = layer.to(device)(torch.stack([x, x], dim=1).to(device)).cpu()
        worst = max(worst, float((y - exact).abs().max()))
    return worst


def errors(device: str) -> dict[str, dict[str, float]]:
    """Largest error for each way to run and each order."""
    every = (1, 2, 3, 5, 8, 12, 20, 35, 50, 75, 100)
    # each order and dense grid is a compilation of its own
    grids = {"compiled": (1, 5, 12, 50, 100), "eager": every, "plain": every}
    return {
        way: {
            f"k={order}": max(largest_error(way, order, g, device) for g in grids[way])
            for order in range(6)
        }
        for way in WAYS
    }


def summary(records: list[dict[str, Any]], worst: dict[str, dict[str, float]]) -> dict[str, float]:
    """Geometric means over the shapes, and the worst of the rest."""

    def values(layer: str, key: str, grid_size: int = 5) -> list[float]:
        return [
            r[key] for r in records
            if r["layer"] == layer and r["grid_size"] == grid_size and key in r
        ]  # fmt: skip

    def mean(found: list[float]) -> float:
        return math.exp(sum(map(math.log, found)) / len(found)) if found else math.nan

    return {
        "compiled: times the packed GEMM": mean(values("compiled", "times_packed_gemm")),
        "compiled: times faster than the textbook": mean(values("compiled", "textbook_times_this")),
        "compiled: times faster than inkan": mean(values("compiled", "inkan_times_this")),
        "eager: times the packed GEMM": mean(values("eager", "times_packed_gemm")),
        "eager: times faster than the textbook": mean(values("eager", "textbook_times_this")),
        "uneven knots: times even ones": mean(values("compiled, uneven knots", "times_even_knots")),
        "50 intervals: times faster than the textbook": mean(
            values("compiled", "textbook_times_this", 50)
        ),
        "saved for backward, share of x": max(
            value for way in ("compiled", "eager") for value in values(way, "saved_share_of_x")
        ),
        "textbook saved for backward, share of x": max(values("textbook", "saved_share_of_x")),
        "largest error": max(value for orders in worst.values() for value in orders.values()),
    }  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Benchmark of the KAN layer.")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is talkative
    torch.manual_seed(0)
    facts = measure.machine(options.device, ("torch", "inkan", "flashkan"))
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)

    records = []
    for rows, width, out, grid_size in [*((*shape, 5) for shape in SHAPES), (4160, 192, 64, 50)]:
        repeats = options.repeats if grid_size == 5 else max(3, options.repeats // 3)
        found = measured_shape(rows, width, out, grid_size, repeats, options.device)
        records += found
        print(f"\n{rows} rows, {width} -> {out}, {grid_size} intervals, cubic, float32")
        print(f"{'':24}{'forward':>9}{'train ms':>10}  {'quartiles':>15}{'x GEMM':>8}"
              f"{'saved/x':>9}{'peak MiB':>10}")  # fmt: skip
        for r in found:
            spread = f"{r['train_ms_q1']:.1f} to {r['train_ms_q3']:.1f}"
            print(f"{r['layer']:24}{r['forward_ms']:9.1f}{r['train_ms']:10.1f}  {spread:>15}"
                  f"{r['times_packed_gemm']:8.2f}{r['saved_share_of_x']:9.2f}"
                  f"{r['peak_mib']:10.1f}", flush=True)  # fmt: skip

    worst = errors(options.device)
    print(
        "\nlargest error of the basis in float32, 1 to 100 intervals, even and uneven,"
        " inside, at knots and outside"
    )
    for way, by_order in worst.items():
        print(f"{way:24}" + "  ".join(f"{k} {value:.1e}" for k, value in by_order.items()))
    print()
    figures = summary(records, worst)
    for name, value in figures.items():
        print(f"{name:46}{value:10.3g}")

    if options.csv:
        with options.csv.open("w", newline="") as file:
            columns = dict.fromkeys(key for record in records for key in record)
            writer = csv.DictWriter(file, [*columns, *facts])
            writer.writeheader()
            writer.writerows({**record, **facts} for record in records)
    if options.json:
        content = {"machine": facts, "summary": figures, "errors": worst, "layers": records}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
