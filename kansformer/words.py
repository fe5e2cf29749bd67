"""Parts of messages: counts with nouns, and commands to run."""

import sys

SCRIPTS = {"train": "train.py", "predict": "predict.py", "split": "split_data.py"}


def number(count: int, what: str) -> str:
    """A count and its noun, with the plural if needed: 1 picture, 2 classes, 1,000 patches."""
    plural = what + ("es" if what.endswith(("s", "tch")) else "s")
    return f"{count:,} {what if count == 1 else plural}"


def command(name: str) -> str:
    """A command of SCRIPTS as the user should run it: as `kansformer NAME` if that is running."""
    is_installed = sys.argv[0].startswith("kansformer ")  # set in kansformer/__main__.py
    return f"kansformer {name}" if is_installed else f"python {SCRIPTS[name]}"
