"""Compiles C++ kernels for this processor, once, and keeps them on disk."""

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
from typing import Any

import torch
from torch import Tensor

from models import splines
from models.cache import cache_folder
from models.kan_compile import warn_of_failure
from models.kan_features import workspace

FLAGS = [
    "-std=c++17", "-O3", "-funroll-loops", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC", "-pthread",
]  # fmt: skip
# What not every compiler has; without OpenMP the kernels start threads themselves. On macOS a
# second OpenMP beside torch's would end the program.
WANTED = ["-march=native", *(["-fopenmp"] if sys.platform != "darwin" else [])]
COMPILERS = ("c++", "g++", "clang++")  # where CXX in the environment names none
FOLDER = Path(__file__).parent
C_TYPES = {torch.float32: "float", torch.float64: "double"}
THREAD = 2**21  # products that repay one
ROWS_OF_SUMS, SUMS = 96, 2**26  # rows that repay sums of their own, and numbers of all sums


@cache
def kernels(
    name: str, exact: torch.dtype, order: int, M: int, activation: str | None
) -> ctypes.CDLL | None:
    """The functions of `name`_kernels.cpp for these; None, with a warning, if that fails.

    Args:
        exact: type of the values, one of C_TYPES.
        order: of the splines.
        M: number of knots.
        activation: beside the splines, a name in `kan_features.ACTIVATIONS` or None.
    """
    base = (activation or "none").upper()
    source = FOLDER / f"{name}_kernels.cpp"
    try:
        return library(source, T=C_TYPES[exact], ORDER=order, M=M, BASE=base)
    except Exception as error:  # no compiler, no room for temporary files, ...
        warn_of_failure(error)
        return None


def call(function: Any, sizes: tuple[int, ...], *tensors: Tensor | None) -> None:
    """Calls a kernel with sizes and the addresses of contiguous tensors, null for none.

    Raises:
        ValueError: not all are on the CPU.
    """
    if not all(tensor is None or tensor.is_cpu for tensor in tensors):
        found = sorted({str(tensor.device) for tensor in tensors if tensor is not None})
        raise ValueError(f"the tensors of a layer are on several devices: {', '.join(found)}")
    if function.argtypes is None:
        function.argtypes = [ctypes.c_ssize_t] * len(sizes) + [ctypes.c_void_p] * len(tensors)
    function(*sizes, *[None if tensor is None else tensor.data_ptr() for tensor in tensors])


def room(
    library: ctypes.CDLL,
    sizes: tuple[int, ...],
    rows: int,
    parts: int,
    like: Tensor,
    sums: bool = False,
) -> tuple[int, Tensor]:
    """Into how many parts to divide the rows, and memory for a kernel.

    First in it are the packed weights, then what each part of the rows needs and, with `sums`, each
    part's sum of the weights' gradient, as large as the packed weights.

    Args:
        library: its `room_needed` says how many numbers the packed weights need, and a part.
        parts: of the rows, at most.
        like: a tensor of the memory's dtype.
        sums: which cost memory and time, so that there may be fewer parts.
    """
    for_weights, for_part = _room_needed(library, sizes)
    if sums:
        parts = max(min(parts, rows // ROWS_OF_SUMS, SUMS // for_weights), 1)
        for_part += for_weights
    numbers = for_weights + parts * for_part
    return parts, workspace.empty("room", (numbers,), like, like.dtype)


@cache
def _room_needed(library: ctypes.CDLL, sizes: tuple[int, ...]) -> tuple[int, int]:
    wanted = torch.empty(2, dtype=torch.int64, device="cpu")
    call(library.room_needed, sizes, wanted[:1], wanted[1:])
    for_weights, for_part = wanted.tolist()
    return for_weights, for_part


def as_given(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as a kernel takes it: contiguous, and in that dtype."""
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor  # in a tenth of the time of what follows
    return tensor.to(dtype).contiguous()


def places(knots: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
    """Knots (in, M) whose last interval is closed, and their `even_steps` if a kernel may use them.

    A value beside a knot may then be taken for one on its other side, which functions of order 0
    and slopes of order 1 do not forgive.
    """
    last = torch.nextafter(knots[:, -1:], knots.new_full((), torch.inf))
    closed = torch.where(knots < knots[:, -1:], knots, last)
    return closed, splines.even_steps(knots) if order >= 2 else None


def parts(rows: int, products: int) -> int:
    """How many threads should share so many rows, with so many products each."""
    return max(min(torch.get_num_threads(), rows * products // THREAD, rows), 1)


def library(source: Path, **defines: object) -> ctypes.CDLL:
    """The functions of a C++ file, compiled with these macros where that was not done before.

    A compiled file is kept under a name made of all that went into it: the sources, the flags, the
    processor and the compiler. Without any compiler, one that another compiler made will do.

    Raises:
        OSError: there is no compiler, or it fails; see `compiler`.
    """
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in defines.items())]
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    name = f"{source.stem}-{_digest(texts, flags, WANTED, processor())}"
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
    found = shutil.which(word)
    if found is None:
        return (word,)
    path = os.path.realpath(found)
    status = os.stat(path)
    return word, path, status.st_size, status.st_mtime_ns


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:24]


def _of_any_compiler(folder: Path | None, name: str) -> ctypes.CDLL:
    """The newest kernel of that name that can be loaded."""
    found = [] if folder is None else folder.glob(f"{glob.escape(name)}-*.so")
    for path in sorted(found, key=os.path.getmtime, reverse=True):
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
    for wanted in (WANTED, WANTED[:1], WANTED[1:], []):
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
    """Who made the processor, and what it can do; a home folder may be shared by several kinds."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            lines = list(takewhile(str.strip, file))  # on the first core, which the others are like
    except OSError:
        return platform.platform() + platform.processor()
    wanted = [line for line in lines if line.startswith(("vendor", "flags", "Feat"))]
    return platform.machine() + "".join(wanted)
