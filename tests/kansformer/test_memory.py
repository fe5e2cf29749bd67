"""Free memory is what every limit on this process leaves; a peak is what is held at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kansformer import memory
from kansformer.device import free_memory, peak_memory
from tests.conftest import ROOT

MB = 1_000_000
CPU = torch.device("cpu")


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


def limits(root: Path) -> dict[str, int]:
    return memory.limits(root / "meminfo", root / "self", root / "cgroup")


def test_free_memory_is_plausible() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.free_memory() <= total
    assert 0 < free_memory(CPU) <= total


def test_where_nothing_can_be_read_nothing_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits(tmp_path) == {}
    monkeypatch.setattr(memory, "limits", dict)
    assert memory.free_memory() == memory.UNKNOWN


def test_ranks_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "limits", lambda: {"a": 900, "b": 800})
    assert memory.scarcest() == "b"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == 200


def test_available_memory(tmp_path: Path) -> None:
    write(tmp_path, {"meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 500 kB"})
    assert limits(tmp_path) == {memory.MACHINE: 500 * 1024}


@pytest.mark.parametrize("mount", ["cgroup", "cgroup/unified"])
def test_every_cgroup_above_counts_without_its_file_cache(tmp_path: Path, mount: str) -> None:
    write(tmp_path, {"self/cgroup": "3:cpu:/other\n0::/a/b"})
    if mount == "cgroup":
        write(tmp_path, {"cgroup/cgroup.controllers": "memory"})
    write(tmp_path / mount, {
        "memory.max": 1,  # of no cgroup of ours, if there were no use
        "a/memory.max": 1000, "a/memory.high": "max", "a/memory.current": 700,
        "a/memory.stat": "anon 5\ninactive_file 200",
        "a/b/memory.max": "max", "a/b/memory.high": 900, "a/b/memory.current": 300,
    })  # fmt: skip
    assert limits(tmp_path) == {memory.CONTAINER: 500}
    write(tmp_path / mount, {"a/b/memory.high": 600})
    assert limits(tmp_path) == {memory.CONTAINER: 300}
    write(tmp_path / mount, {"a/b/memory.current": 700})
    assert limits(tmp_path) == {memory.CONTAINER: 0}


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, {"self/cgroup": "4:memory:/docker/x\n1:cpu:/y"})
    write(tmp_path / "cgroup/memory", {  # in a container, its own group is the root
        "memory.limit_in_bytes": 4000, "memory.usage_in_bytes": 3000,
        "memory.stat": "inactive_file 7\ntotal_inactive_file 500",
    })  # fmt: skip
    assert limits(tmp_path) == {memory.CONTAINER: 1500}


def test_limits_of_the_process(tmp_path: Path) -> None:
    write(tmp_path / "self", {
        "status": "Name:\tpython\nVmSize:\t 30 kB\nVmData:\t 10 kB",
        "limits": "Limit   Soft Limit  Hard Limit  Units\n"
                  "Max data size    unlimited   unlimited   bytes\n"
                  "Max address space   102400   unlimited   bytes",
    })  # fmt: skip
    assert limits(tmp_path) == {memory.ADDRESS_SPACE: 102400 - 30 * 1024}


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads /proc")
@pytest.mark.parametrize(("flag", "name"), [("-v", memory.ADDRESS_SPACE), ("-d", memory.DATA_SIZE)])
def test_a_real_limit_is_seen(flag: str, name: str) -> None:
    code = "from kansformer import memory; print(memory.limits()[getattr(memory, %r)])"
    constant = "ADDRESS_SPACE" if name == memory.ADDRESS_SPACE else "DATA_SIZE"
    done = subprocess.run(
        ["bash", "-c", f'ulimit {flag} 9000000; exec "$@"', "-", sys.executable, "-c",
         code % constant],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 9_000_000 * 1024


def allocate(*sizes: int) -> list[torch.Tensor]:
    return [torch.empty(size, dtype=torch.uint8) for size in sizes]


def test_the_peak_is_what_is_held_at_once() -> None:
    def two_then_one() -> None:
        two = allocate(50 * MB, 50 * MB)
        del two
        allocate(60 * MB)

    def one_after_another() -> None:
        for _ in range(3):
            allocate(50 * MB)

    kept: list[torch.Tensor] = []
    assert peak_memory(two_then_one, CPU) == 100 * MB
    assert peak_memory(one_after_another, CPU) == 50 * MB
    assert peak_memory(lambda: kept.extend(allocate(MB, MB)), CPU) == 2 * MB
    assert peak_memory(kept.clear, CPU) == 0


def test_measuring_prints_nothing() -> None:
    """In a process of its own: the profiler reads its log level when it is first used."""
    code = (
        "import torch; from kansformer.memory import peak_of_allocations as peak;"
        " peak(lambda: torch.zeros(9))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_peak_of_a_gradient_includes_what_is_kept_for_it() -> None:
    weight = torch.rand(MB // 4, requires_grad=True)

    def gradient() -> None:
        weight.exp().exp().exp().sum().backward()  # each keeps its result
        weight.grad = None

    peak = peak_memory(gradient, CPU)
    assert peak is not None
    assert 4 * MB <= peak < 6 * MB
