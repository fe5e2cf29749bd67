"""The warning that comes where kernels cannot be compiled."""

import warnings


def warn_of_fallback(error: Exception) -> None:
    """Warns that layers run eagerly, and why; to be called where the compiler has failed."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(
        f"KAN kernels cannot be compiled here and run eagerly instead ({reason})", stacklevel=3
    )
