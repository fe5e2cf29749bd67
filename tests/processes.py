"""Child processes of tests: commands that may be killed, and ranks of distributed training."""

import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from kansformer.errors import run_command


def start(work: Callable[[], object], log: Path | None = None, **environment: object) -> int:
    """Runs a function as a command in a forked process; returns the process ID.

    Args:
        log: file for its output.
        environment: additional environment variables.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads
        child = os.fork()
    if child:
        return child
    status = 99
    try:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        os.environ.update({name: str(value) for name, value in environment.items()})
        sys.stdout = sys.stderr = open(log or os.devnull, "w", buffering=1)  # noqa: SIM115
        status = run_command(lambda: work() and None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        os._exit(status)


def status_of(child: int, seconds: float = 120) -> int:
    """Waits for a process; returns its exit status, or minus the signal that ended it."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the process did not end within {seconds} s")
        time.sleep(0.01)


def run_ranks(work: Callable[[], object], count: int = 2, log: Path | None = None) -> list[int]:
    """Runs a function in several ranks of torch.distributed; returns their exit statuses."""
    return [status_of(child) for child in start_ranks(work, count, log)]


def start_ranks(work: Callable[[], object], count: int = 2, log: Path | None = None) -> list[int]:
    """Starts the processes of `run_ranks`; the suffix of each log file is the rank."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return [
        start(
            work, log and log.with_suffix(f".{rank}"), RANK=rank, LOCAL_RANK=rank,
            WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in range(count)
    ]  # fmt: skip
