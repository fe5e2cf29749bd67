"""Progress bars, shown only on terminals."""

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None,
    title: str | None = None,
    total: int | None = None,
    *,
    shown: bool | None = None,
    **options: Any,
) -> "tqdm[Any]":
    """A tqdm bar on stderr that disappears when it is complete.

    Args:
        shown: whether to show the bar; None shows it if stderr is a terminal (in a log file, every
            update would leave a fragment) and TQDM_DISABLE is not set.
        options: other options of tqdm, such as `initial` and `unit`.
    """
    if shown is None and os.environ.get("TQDM_DISABLE"):
        shown = False
    disable = None if shown is None else not shown  # with None, tqdm checks for a terminal
    return tqdm(items, title, total, leave=False, mininterval=0.5, disable=disable, **options)
