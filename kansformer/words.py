"""Counts in words."""


def number(count: int, what: str) -> str:
    """1 picture, 2 pictures, 2 classes, 2 patches."""
    plural = what + ("es" if what.endswith(("s", "tch")) else "s")
    return f"{count:,} {what if count == 1 else plural}"
