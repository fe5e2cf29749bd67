"""Runs the web page's command in a child process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(
    arguments: Sequence[object], folder: Path, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Runs `python ... --port 0`, a server, within `with`; yields its address and the process.

    Args:
        arguments: of Python, as in `-m kansformer.web --weights FILE`.
        folder: working directory.
        environment: variables in addition to those of this process.
    """
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments), "--port", "0"], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = re.match(r"http://\S+", process.stdout.readline())
        assert address, process.communicate()[1]
        yield address[0], process
    finally:
        process.terminate()  # has no effect if the process has ended
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Sends a signal; returns the exit status and the whole stderr output."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err
