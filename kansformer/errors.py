"""Errors with messages for users, and how a command reports them."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper


class UserError(ValueError):
    """Bad usage or bad input; the message is one line: the file, the cause and the remedy."""


class JobFailed(RuntimeError):
    """The work could not be done although the input was valid; the message is one line."""


class Stopped(BaseException):
    """The work was stopped by a signal, after saving its state.

    Like KeyboardInterrupt, it is not an `Exception`, so that `except Exception` does not catch it.
    """

    def __init__(self, signal_number: int, text: str = "") -> None:
        super().__init__(text or f"stopped by {signal.Signals(signal_number).name}")
        self.status = 128 + signal_number  # exit status by shell convention: 130 or 143

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int, str]]:
        """Makes it picklable, to pass from worker processes: `args` lacks the signal number."""
        return Stopped, (self.status - 128, str(self))


def one_line(error: BaseException) -> str:
    """The error's message in one line, without the traceback that data loader workers add."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(text.split())


# What memory that runs short makes torch, the loader of libraries, threads and processes say.
SHORT_OF_MEMORY = (
    r"allocate memory|out of memory|bad_alloc|start (new )?thread|thread creation failed"
    r"|failed to map segment|worker .* killed by signal: Killed|worker .* exited unexpectedly"
)

MORE_MEMORY = (
    "close other programs, raise the limit (ulimit -v, container), or choose a smaller model,"
    " --batch-size, --img-size or number of --workers"
)


def is_short_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory for tensors, threads or processes."""
    if isinstance(error, MemoryError):
        return True
    kinds = (RuntimeError, OSError, ImportError)
    return isinstance(error, kinds) and bool(re.search(SHORT_OF_MEMORY, str(error), re.IGNORECASE))


def ignore_pillow_warnings(worker: int = 0) -> None:
    """Ignores Pillow's warnings on metadata and sizes, which findings and errors report instead.

    Called in the process of a command and in each data loader worker.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def run_command(main: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status.

    0 for success; 2 for a `UserError` and 1 for a `JobFailed`, an OSError (such as a full disk) or
    too little memory, each with one line on stderr; 130 after Ctrl-C and 143 after SIGTERM. Any
    other exception is a bug: it propagates with its traceback, and Python exits with 1.

    Output is line-buffered even into a file, so that a log shows the progress of a long run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # the encoding may lack letters of a file name
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    ignore_pillow_warnings()
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except JobFailed as error:
        print(f"failed: {one_line(error)}", file=sys.stderr)
        return 1
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if is_short_of_memory(error):
            cause = one_line(error)[:200] or type(error).__name__
            print(f"failed: too little memory ({cause}); {MORE_MEMORY}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"failed: {one_line(error)}", file=sys.stderr)
        else:
            raise
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
