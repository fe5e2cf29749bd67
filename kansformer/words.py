"""Parts of messages: counts with nouns, and commands to run."""

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


def command(name: str) -> str:
    """A command as the user should run it: `kansformer NAME` if `kansformer` is running."""
    if sys.argv[0].startswith("kansformer "):  # set in kansformer/__main__.py
        return f"kansformer {name}"
    return f"python {IN_CHECKOUT.get(name, f'-m kansformer.{name}')}"
