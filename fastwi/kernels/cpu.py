"""Builds and loads the `.cpp` files beside it, once a machine, with GNU's C++ compiler.

The library has no Python or torch headers in it, so it compiles in a few seconds. It is kept in the user's
cache directory under a hash of source, flags, compiler and processor; where that directory cannot be used, the
library is built for one process. It links against GNU's OpenMP runtime, by the name that torch has loaded it under,
so that both share one pool of threads. Clang's would bring a second pool, whose waiting threads take cores from it.
"""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

from fastwi.errors import UserError
from fastwi.files import atomic_path
from fastwi.kernels.compiler import compilers

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "winograd.cpp", "combine.cpp"))
_HEADERS = tuple(Path(__file__).with_name(name) for name in ("products.h", "transforms.h"))
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=c++17",
)


def _processor() -> str:
    """What -march=native sees: a cache directory on a network disk can be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _version(command: str) -> str:
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout


def _cached(command: str) -> Path:
    version = _version(command)
    text = "\0".join([*(source.read_text() for source in _SOURCES + _HEADERS), *_FLAGS, version, _processor()])
    name = hashlib.sha256(text.encode()).hexdigest()[:20]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "fastwi" / f"cpu-{name}.so"


def _build(command: str, path: Path) -> ctypes.CDLL:
    if not path.exists():
        with atomic_path(path) as temporary:
            line = [command, *_FLAGS, "-o", str(temporary), *map(str, _SOURCES)]
            subprocess.run(line, capture_output=True, check=True, timeout=300)
    return ctypes.CDLL(str(path))


def _built() -> ctypes.CDLL | None:
    command = next((each for each in compilers() if "clang" not in _version(each)), None)
    if command is None:
        return None
    path = _cached(command)
    try:
        return _build(command, path)
    except (
        OSError,
        UserError,
        subprocess.CalledProcessError,
    ):  # no home, a full disk, or nothing there may be run
        with tempfile.TemporaryDirectory() as directory:
            return _build(command, Path(directory) / path.name)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None where there is no GNU compiler or it cannot build them.

    Callers fall back on the torch references beside each kernel.
    """
    try:
        loaded = _built()
    except Exception:  # whatever stops the build or the load, the references do the same work, slower
        return None
    if loaded is None:
        return None
    pointer, integer, long, double = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_double
    for suffix in ("bf16", "fp32"):
        tail = [pointer, pointer, long, long, integer]  # work, tiles, R, C, threads
        getattr(loaded, f"forward_train_{suffix}").argtypes = (
            [pointer] * 3 + [integer] + [pointer] * 6 + [double, double, *tail]
        )
        getattr(loaded, f"forward_eval_{suffix}").argtypes = [pointer] * 3 + [integer] + [pointer] * 2 + tail[1:]
        getattr(loaded, f"backward_{suffix}").argtypes = [pointer] * 6 + [integer] + [pointer] * 6 + tail
        getattr(loaded, f"augment_{suffix}").argtypes = [pointer] * 6 + [long] * 5 + [integer]
        for name in ("forward_train", "forward_eval", "backward", "augment"):
            getattr(loaded, f"{name}_{suffix}").restype = None
    for name in ("shortcut_forward", "shortcut_backward"):
        function = getattr(loaded, name)
        function.argtypes, function.restype = [pointer] * 2 + [long] * 8 + [integer], None
    loaded.winograd_convolve.argtypes = [pointer] * 4 + [long] * 5 + [integer, pointer, integer]
    loaded.winograd_weight_gradient.argtypes = [pointer] * 3 + [long] * 5 + [pointer, integer]
    loaded.copy_rows.argtypes, loaded.copy_rows.restype = [pointer] * 2 + [long] * 2 + [integer], None
    loaded.combine_rows.argtypes, loaded.combine_rows.restype = [pointer] * 4 + [long] * 2 + [integer], None
    loaded.winograd_convolve.restype = loaded.winograd_weight_gradient.restype = None
    loaded.winograd_floats.argtypes, loaded.winograd_floats.restype = [long] * 4 + [integer], long
    for name in ("work_doubles", "work_floats"):
        function = getattr(loaded, name)  # kept by the library object; subscripts would make a new one a call
        function.argtypes, function.restype = [long], long
    return loaded


_kept = threading.local()


def scratch(floats: int) -> int:
    """The address of as many float32 values of work space for one call of a kernel. Each thread keeps its own."""
    space: torch.Tensor | None = getattr(_kept, "space", None)
    if space is None or space.numel() < floats:
        _kept.space = space = torch.empty(floats, dtype=torch.float32, device="cpu")
    return space.data_ptr()
