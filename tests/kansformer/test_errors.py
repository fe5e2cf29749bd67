"""Exceptions from worker processes arrive unchanged, and those about memory end in one line."""

import pickle
import signal

import pytest

from kansformer.errors import Stopped, run_command


@pytest.mark.parametrize("text", ["", "stopped at epoch 3; go on with --resume"])
def test_stopped_can_be_pickled(text: str) -> None:
    stop = Stopped(signal.SIGTERM, text)
    copy = pickle.loads(pickle.dumps(stop))
    assert (copy.status, str(copy)) == (143, text or "stopped by SIGTERM")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 5 bytes"
        ),
        RuntimeError("can't start new thread"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cuda.so: failed to map segment from shared object"),
    ],
)
def test_too_little_memory_ends_in_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert run_command(fail) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("failed: too little memory (")
    assert "--batch-size" in line


def test_a_bug_is_no_shortage_of_memory() -> None:
    def fail() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        run_command(fail)
