"""Parts of messages: counts with nouns, durations, and commands to run."""

import sys

# How a command is run in the checkout, if not as `python -m kansformer.NAME`.
IN_CHECKOUT = {
    "train": "train.py",
    "predict": "predict.py",
    "split": "split_data.py",
    "doctor": "-m kansformer.data.doctor",
    "apply-delta": "-m kansformer.pretrained.delta",
}


def number(count: int, what: str) -> str:
    """A count and its noun, with the plural if needed: 1 picture, 2 classes, 1,000 patches."""
    plural = what + ("es" if what.endswith(("s", "tch")) else "s")
    return f"{count:,} {what if count == 1 else plural}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 0.8 s, 45 s, 18 min, 3 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def gigabytes(count: int) -> str:
    """A number of bytes: 3.1 GB, or 0.02 GB where one decimal would be too few."""
    size = count / 1e9
    return f"{size:.1f} GB" if size >= 0.95 else f"{size:.2f} GB"


def command(name: str) -> str:
    """A command as the user should run it: `kansformer NAME` if `kansformer` is running."""
    if sys.argv[0].startswith("kansformer "):  # set in kansformer/__main__.py
        return f"kansformer {name}"
    return f"python {IN_CHECKOUT.get(name, f'-m kansformer.{name}')}"
