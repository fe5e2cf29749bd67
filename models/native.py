"""Compiles C++ kernels for this processor, and keeps them on disk beside those of `kan_compile`."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from models.kan_compile import cache_folder, processor

FLAGS = [
    "-std=c++17", "-O3", "-march=native", "-funroll-loops", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC",
]  # fmt: skip


def library(source: Path, **defines: object) -> ctypes.CDLL:
    """The functions of a C++ file, compiled with these macros where that was not done before.

    Raises:
        OSError: there is no compiler, or it fails; CXX in the environment is one to be used.
    """
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in defines.items())]
    parts = source.read_bytes(), flags, processor()
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    path = cache_folder() / f"{source.stem}-{key}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # the file is damaged: made again
            path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        _compile(source, made, flags)
        os.replace(made, path)  # in one step: another process may be doing the same
    return ctypes.CDLL(str(path))


def _compile(source: Path, path: Path, flags: list[str]) -> None:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((found for name in names if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError(f"no C++ compiler ({', '.join(names)})")
    for threads in (["-fopenmp"], []):  # some compilers come without OpenMP
        command = [compiler, *flags, *threads, str(source), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
    raise OSError(f"{compiler}: {(done.stderr.strip().splitlines() or ['failed'])[0]}")
