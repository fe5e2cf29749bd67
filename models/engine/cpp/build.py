"""Compiles C++ kernels for this processor, once, and keeps them on disk.

Not by torch.utils.cpp_extension, whose import takes longer than loading a kernel, and which wants
ninja and Python's headers: these files include neither torch nor Python and are called by ctypes.
"""

import ctypes
import glob
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path

from ...cache import cache_folder

FLAGS = [
    "-std=c++17", "-O3", "-funroll-loops", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC", "-pthread",
]  # fmt: skip
# Flags that not every compiler has. Without OpenMP the kernels start threads themselves. On macOS a
# second OpenMP beside torch's would end the program.
OPTIONAL_FLAGS = ["-march=native", *(["-fopenmp"] if sys.platform != "darwin" else [])]
COMPILERS = ("c++", "g++", "clang++")  # where CXX in the environment names none


def library(source: Path, **defines: object) -> ctypes.CDLL:
    """The functions of a C++ file, compiled with these macros unless it is cached.

    A compiled file is kept under a name made of all that went into it: the sources, the flags, the
    processor and the compiler. Without any compiler, one that another compiler made will do.

    Raises:
        OSError: there is no compiler, or it fails; see `compiler`.
    """
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in defines.items())]
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    name = f"{source.stem}-{_digest(texts, flags, OPTIONAL_FLAGS, processor())}"
    kept = cache_folder()
    folder = None if kept is None else kept / "kernels"
    command = compiler()
    if command is None:
        return _of_any_compiler(folder, name)
    name += f"-{_digest([_identity(word) for word in command])}.so"
    if folder is not None and os.path.exists(folder / name):
        try:
            return ctypes.CDLL(str(folder / name))
        except OSError:  # the file is damaged: made again
            with suppress(OSError):
                (folder / name).unlink()
    temporary = _temporary_folder(folder)
    try:
        made = temporary / name
        _compile(command, source, made, flags)
        if temporary.parent == folder:
            made = made.replace(folder / name)  # in one step: another process may do the same
        return ctypes.CDLL(str(made))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def compiler() -> list[str] | None:
    """The command of the C++ compiler: CXX in the environment, else c++, g++ or clang++.

    Returns:
        None where CXX is not set and there is none of the three.

    Raises:
        OSError: CXX is set, and no such program can be run.
    """
    asked = os.environ.get("CXX", "").strip()
    if not asked:
        return next(([name] for name in COMPILERS if shutil.which(name)), None)
    try:
        command = shlex.split(asked)
    except ValueError as error:  # a quotation mark without its counterpart
        raise OSError(f"CXX is {asked}: {error}") from None
    if not shutil.which(command[0]):
        raise OSError(f"no C++ compiler ({asked})")
    return command


def _identity(word: str) -> tuple[object, ...]:
    """A word of a command, and which file it is if it names a program.

    Running the compiler for its version would take longer than loading a kernel.
    """
    program = shutil.which(word)
    if program is None:
        return (word,)
    path = os.path.realpath(program)
    status = os.stat(path)
    return word, path, status.st_size, status.st_mtime_ns


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:24]


def _of_any_compiler(folder: Path | None, name: str) -> ctypes.CDLL:
    """The newest kernel of that name that can be loaded."""
    kernels = [] if folder is None else folder.glob(f"{glob.escape(name)}-*.so")
    for path in sorted(kernels, key=os.path.getmtime, reverse=True):
        with suppress(OSError):
            return ctypes.CDLL(str(path))
    raise OSError(f"no C++ compiler ({', '.join(COMPILERS)})")


def _temporary_folder(folder: Path | None) -> Path:
    """A new folder to compile in, in `folder` if anything can be kept there."""
    if folder is not None:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return Path(tempfile.mkdtemp(dir=folder))
    return Path(tempfile.mkdtemp())


def _compile(command: list[str], source: Path, path: Path, flags: list[str]) -> None:
    for wanted in (OPTIONAL_FLAGS, OPTIONAL_FLAGS[:1], OPTIONAL_FLAGS[1:], []):
        done = subprocess.run(
            [*command, *flags, *wanted, str(source), "-o", str(path)],
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        if done.returncode == 0:
            with path.open("rb+") as file:
                os.fsync(file)  # a power cut must not leave half of it
            return
    lines = done.stderr.strip().splitlines() or ["failed"]
    reason = next((line for line in lines if "error" in line), lines[0])
    raise OSError(f"{' '.join(command)}: {reason}")


@cache
def processor() -> str:
    """Vendor and features of the processor; machines may share a home folder, and so the cache."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            lines = list(takewhile(str.strip, file))  # on the first core, which the others are like
    except OSError:
        return platform.platform() + platform.processor()
    wanted = [line for line in lines if line.startswith(("vendor", "flags", "Feat"))]
    return platform.machine() + "".join(wanted)
