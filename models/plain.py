"""NumPy's numbers as Python's, for sizes, seeds and settings that users pass."""

from dataclasses import fields
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's numbers and lists, also in a list or tuple.

    A NumPy integer is no `int`: JSON and torch's generators refuse it, and sums of its smaller
    types overflow. Anything else comes back as it is.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return value


def plain_fields(settings: Any) -> None:
    """Makes the fields of a dataclass `plain`, in place, even if it is frozen."""
    for field in fields(settings):
        object.__setattr__(settings, field.name, plain(getattr(settings, field.name)))
