"""The console command: kansformer COMMAND ..., with the same flags as the scripts and modules."""

import sys
from importlib import import_module

from kansformer import __version__
from kansformer.errors import run_command

COMMANDS = {
    "train": "kansformer.commands.train",
    "predict": "kansformer.commands.predict",
    "split": "kansformer.commands.split",
    "evaluate": "kansformer.evaluate.__main__",
    "export": "kansformer.export.__main__",
    "interpret": "kansformer.interpret.__main__",
    "web": "kansformer.web.__main__",
    "compare": "kansformer.compare",
    "doctor": "kansformer.data.doctor",
    "report": "kansformer.report.__main__",
}
USAGE = f"usage: kansformer {{{','.join(COMMANDS)}}} ...; kansformer COMMAND --help lists its flags"


def main() -> int:
    """Runs the command given as the first argument; returns its exit status."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("--help", "-h", "--version"):
        print(__version__ if name == "--version" else USAGE)
        return 0
    if name not in COMMANDS:
        cause = f"unknown command {name!r}" if name else "no command given"
        print(f"error: {cause}; {USAGE}", file=sys.stderr)
        return 2
    sys.argv = [f"kansformer {name}", *arguments]
    return run_command(import_module(COMMANDS[name]).main)


if __name__ == "__main__":
    sys.exit(main())
