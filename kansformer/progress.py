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
    hidden: bool = False,
    **options: Any,
) -> "tqdm[Any]":
    """A bar of tqdm's on stderr, gone when it is done.

    None is drawn where stderr is no terminal: a log would hold a fragment for every update. Nor
    with TQDM_DISABLE in the environment.

    Args:
        hidden: draw none on a terminal either.
        options: tqdm's others, such as `initial` and `unit`.
    """
    disable = True if hidden or os.environ.get("TQDM_DISABLE") else None
    return tqdm(items, title, total, leave=False, mininterval=0.5, disable=disable, **options)
