"""The page's command as a process of a test."""

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
    """Runs `python ...`, which serves at a free port, until the end: its address, and the process.

    Args:
        arguments: as in `python -m kansformer.web --weights FILE`.
        folder: where it runs.
        environment: variables for it alone, beside those of this process.
    """
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments), "--port", "0"], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.match(r"http://\S+", process.stdout.readline())
        assert found, process.communicate()[1]
        yield found[0], process
    finally:
        process.terminate()  # nothing, if it has ended
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Sends a signal; the exit status and what was written on stderr from start to end."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err
