"""The same work for many pictures, in several processes, with a progress bar."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from kansformer.errors import JobFailed

Result = TypeVar("Result")
CHUNK = 16  # pictures that a process takes at a time


def in_processes(
    work: Callable[[Any], Result], items: Sequence[Any], workers: int | None, title: str
) -> Iterator[Result]:
    """Yields work(item) in the order of the items; few items are done in this process.

    Args:
        work: a function of a module, so that it can be sent to a process.
        workers: at most so many processes; None for one per CPU.

    Raises:
        JobFailed: a process was killed.
    """
    workers = min(workers or os.cpu_count() or 1, len(items) // CHUNK)

    def bar(results: Iterable[Result]) -> Iterator[Result]:
        yield from tqdm(results, title, len(items), leave=False, disable=not items)

    if workers <= 1:
        yield from bar(map(work, items))
        return
    pool = ProcessPoolExecutor(workers, initializer=_leave_signals_to_the_parent)
    try:
        yield from bar(pool.map(work, items, chunksize=CHUNK))
    except BrokenProcessPool:
        raise JobFailed(
            f"{title}: a process was killed, perhaps for want of memory; give fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
