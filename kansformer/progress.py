"""Progress bars, which are for terminals only."""

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
    """A tqdm bar on stderr that disappears when it is done.

    Args:
        shown: None shows it on a terminal only, since in a log file every update would leave a
            fragment, and not with TQDM_DISABLE in the environment. Or always, or never.
        options: others of tqdm, such as `initial` and `unit`.
    """
    if shown is None and os.environ.get("TQDM_DISABLE"):
        shown = False
    disable = None if shown is None else not shown  # tqdm asks the terminal where it is None
    return tqdm(items, title, total, leave=False, mininterval=0.5, disable=disable, **options)
