"""Compiles kernels ahead of time and keeps them on disk, so that a machine compiles each once.

On a CPU through AOTInductor, whose kernels load in milliseconds and are called without the guards
that a `torch.compile`d function checks each time; elsewhere through `torch.compile`, which keeps a
cache of its own (no one has run that yet).
"""

import hashlib
import inspect
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

# At the default thresholds the intermediate values of a long formula are written to memory and
# read again, which makes it ten times as slow.
OPTIONS: dict[str, Any] = {"realize_opcount_threshold": 10**5, "realize_reads_threshold": 10**5}
CPU_OPTIONS = {
    **OPTIONS,
    "cpp.dynamic_threads": True,
    "cpp.enable_floating_point_contract_flag": "fast",  # fused multiply-add
}

log = logging.getLogger(__name__)


class Kernel(NamedTuple):
    """What to compile; the arguments of `compiled`."""

    function: Callable[..., None]
    constants: tuple[object, ...]
    examples: list[Tensor]
    dynamic: list[dict[int, str]]


def all_compiled(*kernels: Kernel) -> tuple[Callable[..., object], ...] | None:
    """Compiled kernels, each tried on its examples; None, with a warning, if that fails."""
    try:
        functions = tuple(compiled(*kernel) for kernel in kernels)
        for function, kernel in zip(functions, kernels, strict=True):
            function(*kernel.examples)  # torch.compile does its work, and fails, at the first call
        return functions
    except Exception as error:  # compilers fail in all sorts of ways
        warn_of_failure(error)
        return None


def warn_of_failure(error: Exception) -> None:
    """Says that there will be no kernels."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(
        f"KAN kernels cannot be compiled here and run eagerly instead ({reason})", stacklevel=3
    )


def compiled(
    function: Callable[..., None],
    constants: tuple[object, ...],
    examples: list[Tensor],
    dynamic: list[dict[int, str]],
) -> Callable[..., object]:
    """function(*constants, *tensors), compiled; it writes its results into some of the tensors.

    Args:
        function: at the top level of a module `*_features`; all that it calls is in such.
        constants: plain values that the kernel is compiled for.
        examples: tensors like those that it will get, contiguous, of typical sizes.
        dynamic: for each tensor, which of its dimensions go by which name; other sizes are fixed.

    Returns:
        A function of contiguous tensors with these dtypes.

    Raises:
        Exception: whatever the compiler raises, which can be anything.
    """
    if examples[0].device.type != "cpu":

        def run(*tensors: Tensor) -> None:
            function(*constants, *(tensor.detach() for tensor in tensors))

        # torch.compile counts what it compiles by code object, and gives up after a few
        own = FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
        return torch.compile(own, dynamic=True, fullgraph=True, options=OPTIONS)
    path = cache_folder() / f"{function.__name__}-{_key(function, constants, examples)}.pt2"
    with _quiet():
        if path.exists():
            try:
                return torch._inductor.aoti_load_package(str(path))
            except Exception as error:  # the file is damaged: made again below
                log.info("the compiled kernel %s cannot be loaded: %s", path, error)
        log.warning("compiling KAN kernels for this machine, once; this takes about half a minute")
        _compile(path, _Module(function, constants), examples, dynamic)
        return torch._inductor.aoti_load_package(str(path))


def cache_folder() -> Path:
    """Where compiled kernels are kept: `kansformer/kernels` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kansformer" / "kernels"


class _Module(nn.Module):
    def __init__(self, function: Callable[..., None], constants: tuple[object, ...]) -> None:
        super().__init__()
        self.function, self.constants = function, constants

    def forward(self, *tensors: Tensor) -> None:
        self.function(*self.constants, *tensors)


def _compile(
    path: Path, module: nn.Module, examples: list[Tensor], dynamic: list[dict[int, str]]
) -> None:
    dims = {name: Dim(name, min=1) for dimensions in dynamic for name in dimensions.values()}
    shapes = tuple({i: dims[name] for i, name in dimensions.items()} for dimensions in dynamic)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program = torch.export.export(module, tuple(examples), dynamic_shapes={"tensors": shapes})
        package = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(Path(folder) / "kernel.pt2"),
            inductor_configs=dict(CPU_OPTIONS),  # which is written to
        )
        os.replace(package, path)  # in one step: another process may be doing the same


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the compiler's warnings, such as that a machine without a GPU has no CUDA."""
    loud = logging.getLogger("torch.utils.cpp_extension")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        loud.setLevel(level)


def _key(
    function: Callable[..., None], constants: tuple[object, ...], examples: list[Tensor]
) -> str:
    """Of everything that the machine code depends on."""
    sources = sorted(Path(inspect.getfile(function)).parent.glob("*_features.py"))
    parts = (
        [path.read_text() for path in sources],
        function.__name__,
        constants,
        [(tuple(tensor.shape), tensor.dtype) for tensor in examples],
        torch.__version__,
        torch.get_num_threads() > 1,
        CPU_OPTIONS,
        processor(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def processor() -> str:
    """What the processor can do; a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return platform.machine() + next((li for li in lines if li.startswith(("flags", "Feat"))), "")
