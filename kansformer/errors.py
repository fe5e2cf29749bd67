"""The errors that users see, and how a command reports them."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from io import TextIOWrapper


class UserError(ValueError):
    """Bad usage or bad input; its text is one line: the file, the cause and the remedy."""


class JobFailed(RuntimeError):
    """The work could not be done although the input was good; its text is one line."""


class Stopped(BaseException):
    """The work was left because of a signal, after saving what there was to save.

    Like KeyboardInterrupt, it is not an `Exception`, so that no handler of those swallows it.
    """

    def __init__(self, signal_number: int, text: str = "") -> None:
        super().__init__(text or f"stopped by {signal.Signals(signal_number).name}")
        self.status = 128 + signal_number  # as shells have it: 130 or 143

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int, str]]:
        """For pickle, in which a worker process hands it on: the number is not in `args`."""
        return Stopped, (self.status - 128, str(self))


def one_line(error: BaseException) -> str:
    """The error's own text, also when it comes wrapped in the traceback of a data loader worker."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = text.rsplit(f"{type(error).__name__}: ", 1)[-1]
    return " ".join(text.split())


def ignore_pillow_warnings(worker: int = 0) -> None:
    """Drops Pillow's warnings of odd metadata and sizes, which findings and errors report instead.

    For the process of a command, and for each worker of a data loader.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def run_command(main: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status.

    0 done, 2 for a `UserError`, 1 for a `JobFailed` or what the system refuses (a full disk), each
    with one line on stderr; 130 and 143 after Ctrl-C and SIGTERM. Any other exception is a fault of
    the program: it passes, with its traceback, and Python exits with 1.

    Lines are written when they are printed, also into a file, so that a log tells how far a long
    run has come.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file name may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    ignore_pillow_warnings()
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (JobFailed, OSError) as error:
        print(f"failed: {one_line(error)}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
