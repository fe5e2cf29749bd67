"""Applies a function to many pictures, in several processes, with a progress bar."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from kansformer.device import usable_cores
from kansformer.errors import JobFailed, ignore_pillow_warnings
from kansformer.progress import progress_bar

Result = TypeVar("Result")
CHUNK = 16  # pictures that a process receives at a time
_stop: Any = None  # in a worker process: the event that ends its work


def in_processes(
    work: Callable[[Any], Result], items: Sequence[Any], workers: int | None, title: str
) -> Iterator[Result]:
    """Yields work(item) in the order of the items; small jobs run in this process.

    Args:
        work: a module-level function, since it is pickled.
        workers: upper limit for the number of processes; None for one per CPU.

    Raises:
        JobFailed: a worker process was killed.
    """
    workers = min(workers or usable_cores(), len(items) // CHUNK)

    def bar(results: Iterable[Result]) -> Iterator[Result]:
        yield from progress_bar(results, title, len(items)) if items else results

    if workers <= 1:
        yield from bar(map(work, items))
        return
    stop = multiprocessing.Event()
    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(stop,))
    try:
        yield from bar(pool.map(partial(_unless_stopped, work), items, chunksize=CHUNK))
    except BrokenProcessPool:
        raise JobFailed(
            f"{title}: a worker process was killed, perhaps out of memory; give fewer --workers"
        ) from None
    finally:  # also after an error or Ctrl-C: start no further items
        stop.set()
        pool.shutdown(cancel_futures=True)


def _begin(stop: Any) -> None:
    """Initializes a worker process: it leaves Ctrl-C to its parent, and ends with it."""

    global _stop
    _stop = stop
    ignore_pillow_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _unless_stopped(work: Callable[[Any], Any], item: Any) -> Any:
    return None if _stop.is_set() else work(item)
