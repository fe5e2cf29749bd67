"""Work in several processes: ordered results, original errors, and no processes left running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kansformer.data.parallel import in_processes
from kansformer.device import usable_cores
from kansformer.errors import JobFailed, UserError
from tests.conftest import ROOT


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def refuse_70(number: int) -> int:
    if number == 70:
        raise UserError("number 70: refused; take another")
    return number


def die_at_70(number: int) -> int:
    if number == 70:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def mark(folder: Path, number: int) -> None:
    (folder / str(number)).touch()
    time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 3, None])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_results_come_in_order(workers: int | None, count: int) -> None:
    results = list(in_processes(square, range(count), workers, "squares"))
    assert [result for result, _ in results] == [number**2 for number in range(count)]
    inside = {process for _, process in results} - {os.getpid()}
    assert len(inside) <= (workers or usable_cores())
    assert bool(inside) == (count == 100 and workers != 1 and (workers or usable_cores()) > 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_is_raised_unchanged(workers: int) -> None:
    with pytest.raises(UserError, match="number 70: refused"):
        list(in_processes(refuse_70, range(200), workers, "numbers"))


def test_a_killed_process_is_reported_in_one_line() -> None:
    with pytest.raises(JobFailed, match=r"numbers: a worker process was killed.*fewer --workers"):
        list(in_processes(die_at_70, range(200), 2, "numbers"))


def test_no_further_items_start_after_the_iterator_is_closed(tmp_path: Path) -> None:
    results = in_processes(partial(mark, tmp_path), range(400), 2, "marks")
    next(results)
    results.close()
    done = len(os.listdir(tmp_path))
    assert done < 64  # unstopped, the workers would finish their chunks and those in the queue
    time.sleep(0.1)
    assert len(os.listdir(tmp_path)) == done


CODE = """
import os, signal, sys, time, types
package = types.ModuleType("kansformer.data")  # skips the imports of __init__, to start fast
package.__path__ = ["kansformer/data"]
sys.modules["kansformer.data"] = package
from kansformer.data.parallel import in_processes
signal.signal(signal.SIGINT, signal.default_int_handler)

def work(number):
    time.sleep(0.01)
    return os.getpid()

for process in in_processes(work, range(100_000), 2, "sleeps"):
    print(process, flush=True)
"""


def is_alive(process: int) -> bool:
    """Whether a process is running; False for a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # it ended, perhaps while reading
        return False


def becomes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -2), (signal.SIGKILL, -9)])
def test_no_worker_outlives_its_parent(number: int, status: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CODE],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        processes = {int(parent.stdout.readline()) for _ in range(64)}
        assert len(processes) == 2
        parent.send_signal(number)
        assert becomes_true(lambda: not any(map(is_alive, processes)))
        parent.stdout.read()
        assert parent.wait() == status
