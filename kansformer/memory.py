"""How much memory this process can still get, and how much a computation takes at its peak."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import torch

UNKNOWN = 2**63  # bytes, where the system does not say how much is free
# Names of limits, for messages
MACHINE = "memory of this machine"
CONTAINER = "memory of this container (cgroup)"
ADDRESS_SPACE = "ulimit -v, which also counts what torch's libraries reserve"
DATA_SIZE = "ulimit -d"
OF_ONE_PROCESS = (ADDRESS_SPACE, DATA_SIZE)  # does not count child processes
CGROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self")
SYSTEM = Path("/proc/meminfo")


def free_memory() -> int:
    """Bytes of memory that this process can still get; UNKNOWN where no limit can be read."""
    return min(limits().values(), default=UNKNOWN)


def scarcest() -> str:
    """The name of the limit that `free_memory` returns, for messages."""
    free = limits()
    return min(free, key=lambda name: free[name]) if free else "unknown"


def limits(
    system: Path = SYSTEM, process: Path = PROCESS, cgroups: Path = CGROUPS
) -> dict[str, int]:
    """Bytes that are left under each limit on the memory of this process.

    Only Linux says: the memory of the machine that is available without swapping; the cgroups of
    the process, versions 1 and 2, which containers limit; and the limits on address space and data
    (`ulimit -v` and `-d`), which count what is reserved, used or not.

    Args:
        system, process, cgroups: paths that correspond to the defaults.
    """
    free = {}
    available = _numbers(system).get("MemAvailable")
    if available is not None:
        free[MACHINE] = 1024 * available
    groups = [max(limit - used, 0) for limit, used in _groups(process / "cgroup", cgroups)]
    if groups:
        free[CONTAINER] = min(groups)
    status, maximum = _numbers(process / "status"), _text(process / "limits")
    for name, title, counter in (
        (ADDRESS_SPACE, "address space", "VmSize"),
        (DATA_SIZE, "data size", "VmData"),
    ):
        match = re.search(rf"^Max {title}\s+(\d+)", maximum, re.MULTILINE)
        if match and counter in status:
            free[name] = max(int(match[1]) - 1024 * status[counter], 0)
    return free


def _groups(membership: Path, root: Path) -> Iterator[tuple[int, int]]:
    """(limit, use) in bytes of the cgroups that this process is in, and of those above them.

    In a container, the paths in /proc/self/cgroup may be those outside of it. Then the folders do
    not exist, except the root, which is the container's.

    Args:
        membership: a file of lines "number:controllers:path".
        root: where the cgroups are mounted.
    """
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        version_1 = "memory" in controllers.split(",")
        if controllers and not version_1:
            continue
        mount = root / "memory" if version_1 else root
        if not version_1 and not (root / "cgroup.controllers").exists():
            mount = root / "unified"  # beside version 1
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for depth in range(len(parts) + 1):
            yield from _limit_and_use(mount.joinpath(*parts[:depth]), version_1)


def _limit_and_use(group: Path, version_1: bool) -> Iterator[tuple[int, int]]:
    """(limit, use) of one cgroup, without the file cache that it can drop; none without a limit."""
    if version_1:
        names, use = ["memory.limit_in_bytes"], "memory.usage_in_bytes"
    else:
        names, use = ["memory.max", "memory.high"], "memory.current"
    cache = "total_inactive_file" if version_1 else "inactive_file"
    maxima = [int(text) for name in names if (text := _text(group / name).strip()).isdigit()]
    used = _text(group / use).strip()
    if maxima and used.isdigit():
        yield min(maxima), int(used) - _numbers(group / "memory.stat").get(cache, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system, or another version of the kernel
        return ""


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file that give a name and a number: "MemAvailable:  1024 kB"."""
    pairs = re.findall(r"^(\w+):?\s+(\d+)", _text(path), re.MULTILINE)
    return {name: int(number) for name, number in pairs}


def peak_of_allocations(call: Callable[[], object]) -> int:
    """The most bytes of CPU tensors that a call holds at once, beyond those that exist before it.

    Torch's profiler reports each allocation and release. What libraries allocate by themselves
    (MKL, oneDNN), and what is lost between blocks, is not part of it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print to stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    changes = [
        event
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == torch.profiler.DeviceType.CPU
    ]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
