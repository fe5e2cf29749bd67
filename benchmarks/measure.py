"""Timing, memory and the machine's description, for the benchmarks."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Name = TypeVar("Name", bound=Hashable)


def interleaved(
    jobs: Mapping[Name, Callable[[], object]], repeats: int, device: str, warmup: int = 2
) -> dict[Name, list[float]]:
    """Milliseconds of each job in each of `repeats` rounds.

    Every round runs every job once, so that whatever else slows the machine meets all of them, and
    starts with another one, so that none always follows the same neighbor.
    """
    names = list(jobs)
    times: dict[Name, list[float]] = {name: [] for name in names}
    for number in range(-warmup, repeats):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            synchronize(device)
            start = time.perf_counter()
            jobs[name]()
            synchronize(device)
            if number >= 0:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def synchronize(device: str) -> None:
    """Waits for an accelerator; a CPU has nothing to wait for."""
    if device != "cpu":
        torch.accelerator.synchronize()


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def paired_ratio(a: list[float], b: list[float]) -> float:
    """Median over the rounds of a / b, so that what slows a whole round cancels."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass beyond the parameters."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module(x)  # alive until counted, so that no address is used twice
    for parameter in module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del y
    return sum(kept.values())


def peak_bytes(job: Callable[[], object]) -> int:
    """Most memory that torch holds during a job beyond what it held before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        job()
    assert profile.profiler is not None
    # the averages per operator do not say what was held at one time
    pending = list(profile.profiler.kineto_results.experimental_event_tree())
    changes = []
    while pending:
        event = pending.pop()
        pending += event.children
        if event.name == "[memory]":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = peak = 0
    for _, size in sorted(changes):
        held += size
        peak = max(peak, held)
    return peak


def machine(device: str, packages: tuple[str, ...] = ("torch", "timm")) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    name = _processor() if device == "cpu" else torch.get_device_module(device).get_device_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((li.split(":")[1].strip() for li in lines if li.startswith("model name")), "CPU")
