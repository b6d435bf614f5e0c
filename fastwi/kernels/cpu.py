"""Builds, loads and calls the `.cpp` files beside it. They are built once a machine, with GNU's C++ compiler.

The library is kept by its sources, flags, compiler and processor (`fastwi.kernels.compiler`). It links against GNU's
OpenMP runtime, by the name that torch has loaded it under, so that both share one pool of threads. Clang and the
compilers made of it would bring a second pool, and they ignore the pragma of combine.cpp, which has products rounded.
"""

import contextlib
import ctypes
import functools
import platform
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastwi.kernels.compiler import built, compilers, version_of

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "winograd.cpp", "direct.cpp", "combine.cpp"))
_HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
_FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-trapping-math", "-fopenmp"]
_FLAGS += ["-shared", "-fPIC", "-std=c++17"]

SUFFIX = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Of the functions that take activations of a dtype."""

_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64, "d": ctypes.c_double}
_ARGUMENTS = {  # before the number of threads, which is the last of each
    "forward_train_{}": "ppp i pppppp dd p ll",
    "forward_eval_{}": "ppp i pp p ll",
    "backward_{}": "pppppp i pppppp p ll",
    "norm_floats": "l",
    "augment_{}": "pppppp lllll",
    "shortcut_forward": "pp llllllll",
    "shortcut_backward": "pp llllllll",
    "winograd_convolve_{}": "pppp lllll i p",
    "winograd_weight_gradient_{}": "ppp lllll p",
    "winograd_floats": "llll",
    "direct_forward_{}": "pppp llllll p",
    "direct_backward_{}": "ppppp llllll p",
    "direct_floats": "lllll",
    "copy_rows": "pp ll",
    "combine_rows": "pppp ll",
}


def _processor() -> str:
    """What -march=native depends on: machines of different kinds may share a cache directory on a network disk."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _made_of(command: str) -> list[str]:
    """All that decides what the compiler `command` builds."""
    sources = [source.read_text() for source in _SOURCES + _HEADERS]
    return [*sources, *_FLAGS, version_of(command), _processor()]


def _built() -> ctypes.CDLL | None:
    command = next((each for each in compilers() if "Free Software Foundation" in version_of(each)), None)
    if command is None:
        return None

    def build(path: Path) -> None:
        line = [command, *_FLAGS, "-o", str(path), *map(str, _SOURCES)]
        subprocess.run(line, capture_output=True, check=True, timeout=300)

    return built("cpu", ".so", _made_of(command), build, lambda path: ctypes.CDLL(str(path)))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None where there is no GNU compiler or it cannot build them.

    Callers then use the torch reference of each kernel.
    """
    try:
        loaded = _built()
    except Exception:  # whatever prevents the build or the load: the references do the same work, slower
        return None
    for pattern, letters in _ARGUMENTS.items() if loaded is not None else ():
        for suffix in SUFFIX.values():
            function = getattr(loaded, pattern.format(suffix))  # kept by the library object, with these types
            function.argtypes = [_TYPES[letter] for letter in letters.replace(" ", "") + "i"]
            function.restype = ctypes.c_int64
    return loaded


def call(name: str, *arguments: Tensor | float | None) -> None:
    """Run the library's function `name` with torch's number of threads. Tensors are passed by their address."""
    addresses = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    getattr(library(), name)(*addresses, torch.get_num_threads())
    if _local.listener is not None:
        _local.listener(name, arguments)


class _Local(threading.local):
    """Of each thread."""

    space = torch.empty(0, dtype=torch.float32, device="cpu")
    listener: Callable[[str, tuple[Tensor | float | None, ...]], None] | None = None


_local = _Local()


def scratch(name: str, *sizes: int) -> Tensor:
    """Work space for one call of a kernel: float32 values, at least as many as the library's `name` says.

    Each thread has its own.
    """
    floats = _floats(name, *sizes, torch.get_num_threads())
    if _local.space.numel() < floats:
        _local.space = torch.empty(floats, dtype=torch.float32, device="cpu")
    return _local.space


@functools.cache
def _floats(name: str, *sizes: int) -> int:
    return int(getattr(library(), name)(*sizes))


@contextlib.contextmanager
def listening(listener: Callable[[str, tuple[Tensor | float | None, ...]], None]) -> Iterator[None]:
    """Within the block `listener` gets name and arguments of each `call` of this thread, after it.

    Work space is allocated anew within the block.
    """
    _local.listener, _local.space = listener, _Local.space
    try:
        yield
    finally:
        _local.listener = None
