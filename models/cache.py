"""Where to keep what can be made again: compiled kernels, and what is known of picture files."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """The folder `kansformer` in the user's cache folder, which need not exist yet.

    That is `XDG_CACHE_HOME`, or `~/.cache` where it is not set or not absolute (the XDG Base
    Directory Specification has relative paths ignored).

    Returns:
        None for a user without a home folder, such as a user ID that the system does not know.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")  # unlike Path.expanduser it never raises
    return Path(base, "kansformer") if os.path.isabs(base) else None
