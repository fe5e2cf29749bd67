"""Words for messages: counts, and how a command is called."""

import sys

SCRIPTS = {"train": "train.py", "predict": "predict.py", "split": "split_data.py"}


def number(count: int, what: str) -> str:
    """1 picture, 2 pictures, 2 classes, 2 patches."""
    plural = what + ("es" if what.endswith(("s", "tch")) else "s")
    return f"{count:,} {what if count == 1 else plural}"


def command(name: str) -> str:
    """How to call a command of SCRIPTS: by its script, or by `kansformer` where that is running."""
    called = sys.argv[0].startswith("kansformer ")  # see kansformer/__main__.py
    return f"kansformer {name}" if called else f"python {SCRIPTS[name]}"
