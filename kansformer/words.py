"""Counts in words."""


def number(count: int, what: str) -> str:
    """1 picture, 2 pictures, 2 classes."""
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{count:,} {what if count == 1 else plural}"
