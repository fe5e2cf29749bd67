"""The console command: kansformer COMMAND ..., with the same flags as the scripts and modules."""

import sys
from importlib import import_module

from kansformer import __version__
from kansformer.errors import run_command

# the module whose main() it runs, and what it does
COMMANDS = {
    "train": ("kansformer.commands.train", "train a model on a folder of pictures"),
    "predict": ("kansformer.commands.predict", "classify pictures"),
    "split": ("kansformer.commands.split", "split a folder into train/, val/ and test/"),
    "evaluate": ("kansformer.evaluate.__main__", "measure accuracy and calibration"),
    "export": ("kansformer.export.__main__", "write a model as ONNX or pt2"),
    "interpret": ("kansformer.interpret.__main__", "show what a model has learned, prune it"),
    "web": ("kansformer.web.__main__", "try a model in the browser"),
    "compare": ("kansformer.compare.__main__", "train KANs and an MLP with paired seeds"),
    "doctor": ("kansformer.data.doctor", "check a folder of pictures, change nothing"),
    "apply-delta": ("kansformer.pretrained.delta", "complete the weights saved by --save-delta"),
    "report": ("kansformer.report.__main__", "write the report of a training run again"),
}
HELP = "\n".join(
    [
        "usage: kansformer COMMAND ...",
        "",
        *(f"  {name:12}{what}" for name, (_, what) in COMMANDS.items()),
        "",
        "kansformer COMMAND --help lists the flags of a command; kansformer --version",
    ]
)


def main() -> int:
    """Runs the command given as the first argument; returns its exit status."""
    name, *arguments = sys.argv[1:] or [""]
    if name in ("--help", "-h", "--version"):
        print(__version__ if name == "--version" else HELP)
        return 0
    if name not in COMMANDS:
        wrong = f"unknown command {name!r}" if name else "no command given"
        print(f"error: {wrong}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"kansformer {name}", *arguments]
    return run_command(lambda: import_module(COMMANDS[name][0]).main())


if __name__ == "__main__":
    sys.exit(main())
