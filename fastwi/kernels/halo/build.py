"""Compiles and launches the `.cu` files beside it: by NVRTC for a GPU, by a C++ compiler for the emulator.

    KERNEL = Kernel("forward.cu", "forward", threads=128, shared_bytes=20480, constants=(("H", 32), ("W", 32)))
    launch(KERNEL, (tiles, 1, members), x, weight, y, None, member_stride)

The arguments are the kernel's `Arguments`, a struct of pointers and int64_t in this order. A launch on a GPU goes to
the current stream, waits for nothing, and can be captured. NVRTC and the driver are reached through cuda-bindings,
which torch's wheels for Linux depend on. Compiled code is kept in the user's cache directory.
"""

import ctypes
import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastwi.kernels import gpu
from fastwi.kernels.compiler import built, compiler, version_of

_HERE = Path(__file__).parent
MULTIPROCESSORS = 132  # that launches are sized for: an H100's
_LEAST_CAPABILITY = 80  # of sm_80: products of bf16, and copies in the background
_HOST_FLAGS = ["-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c++"]
_DEVICE_FLAGS = ["--std=c++17", "--fmad=false"]
_LEAST_SHARED = 99 << 10  # bytes that a CTA may have on every such GPU; more on those of data centres

Argument = Tensor | int | None


@dataclass(frozen=True)
class Kernel:
    """One kernel of one source, with the constants that it is compiled for."""

    source: str
    name: str
    threads: int
    shared_bytes: int
    constants: tuple[tuple[str, int], ...]

    @property
    def definitions(self) -> list[str]:
        """The constants as options of a compiler; SHARED_BYTES and THREADS are among them."""
        own = (("THREADS", self.threads), ("SHARED_BYTES", self.shared_bytes))
        return [f"-D{name}={value}" for name, value in self.constants + own]


class _HostLaunch(ctypes.Structure):
    """`emulator::Launch`."""

    _fields_ = [
        ("grid", ctypes.c_int * 3),
        ("shared_bytes", ctypes.c_int),
        ("argument_bytes", ctypes.c_int),
        ("ranges", ctypes.c_int),
        ("allowed", ctypes.POINTER(ctypes.c_size_t)),
    ]


def launch(kernel: Kernel, grid: tuple[int, int, int], *arguments: Argument) -> None:
    """Run `kernel` on the device of its tensors: on a CPU in the emulator, where RuntimeError says what it found."""
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    packed = pack(*arguments)
    if tensors[0].device.type != "cuda":
        return _emulate(kernel, grid, packed, tensors)
    with gpu.on(tensors[0].device):
        _on_gpu(kernel, grid, packed)


def aligned_weights(weight_MOHWI: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights as the kernels read them: in `dtype`, each member's dense and at a multiple of 8 bytes."""
    weight = weight_MOHWI.to(dtype)
    if weight[0].is_contiguous() and gpu.row_alignment(8, weight) == 8:
        return weight
    return weight.clone(memory_format=torch.contiguous_format)


def pack(*arguments: Argument) -> "ctypes.Array[ctypes.c_int64]":
    """The kernel's `Arguments`: 8 bytes each, a tensor by its address, None as a null pointer."""
    words = [x.data_ptr() if isinstance(x, Tensor) else int(x or 0) for x in arguments]
    return (ctypes.c_int64 * len(words))(*words)


def runs_here(device: torch.device) -> bool:
    """Whether launches on `device` are the fast way: on a CPU they are not, whose emulator is for the tests."""
    return device.type == "cuda" and missing(device) is None


def fits(kernel: Kernel, device: torch.device) -> bool:
    """Whether a multiprocessor of `device` has the shared memory of one CTA."""
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    return kernel.shared_bytes <= getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED)


@functools.cache
def missing(device: torch.device) -> str | None:
    """What keeps `device` from running these kernels, as a part of a sentence; None where nothing does."""
    if device.type != "cuda":
        return None if compiler() else "a C++ compiler"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < _LEAST_CAPABILITY:
        return f"a GPU of compute capability 8.0 or later, and {device} has {major}.{minor}"
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401

        nvrtc.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError):
        return "NVRTC (pip install cuda-bindings nvidia-cuda-nvrtc)"
    return None


@functools.cache
def cubin(kernel: Kernel, architecture: str) -> bytes:
    """Machine code of `kernel` for an architecture such as sm_90. Raises RuntimeError with NVRTC's log."""
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture={architecture}", *_DEVICE_FLAGS, *kernel.definitions]
    version = "{}.{}".format(*_checked(nvrtc.nvrtcVersion()))

    def build(path: Path) -> None:
        text = (_HERE / kernel.source).read_bytes()
        program = _checked(nvrtc.nvrtcCreateProgram(text, kernel.source.encode(), 0, [], []))
        lines = [option.encode() for option in [*options, f"-I{_HERE}"]]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(lines), lines)
        if int(status):
            log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
            _checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"NVRTC cannot compile {kernel.source}: {log.decode().strip()}")
        code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        _checked(nvrtc.nvrtcDestroyProgram(program))
        path.write_bytes(code)

    return built("halo", ".cubin", _parts(kernel, [version, *options]), build, Path.read_bytes)


@functools.cache
def _host_function(kernel: Kernel) -> Any:
    command = compiler()
    if command is None:
        raise RuntimeError("the halo kernels need a C++ compiler on a CPU; install g++")
    flags = [*_HOST_FLAGS, *kernel.definitions]

    def build(path: Path) -> None:
        line = [command, *flags, f"-I{_HERE}", str(_HERE / kernel.source), "-o", str(path)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{command} cannot compile {kernel.source}: {done.stderr}")

    parts = _parts(kernel, [version_of(command), *flags])
    library = built("halo", ".so", parts, build, lambda path: ctypes.CDLL(str(path)))
    return getattr(library, f"{kernel.name}_on_host")


def _parts(kernel: Kernel, options: list[str]) -> list[str]:
    """All that decides what is built: `options`, the compiler's version among them, and the sources."""
    return [*options, *(path.read_text() for path in (_HERE / kernel.source, *sorted(_HERE.glob("*.h"))))]


def _emulate(kernel: Kernel, grid: tuple[int, int, int], packed: Any, tensors: list[Tensor]) -> None:
    ends = [end for x in tensors for end in (x.data_ptr(), x.data_ptr() + _span(x) * x.element_size())]
    allowed = (ctypes.c_size_t * len(ends))(*ends)
    made = _HostLaunch((ctypes.c_int * 3)(*grid), kernel.shared_bytes, ctypes.sizeof(packed), len(tensors), allowed)
    message = ctypes.create_string_buffer(512)
    if _host_function(kernel)(packed, ctypes.byref(made), message):
        raise RuntimeError(f"{kernel.source}, {kernel.name}: {message.value.decode()}")


def _span(x: Tensor) -> int:
    """Values from the first to the last of x: a view of a population's rows has gaps."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def _on_gpu(kernel: Kernel, grid: tuple[int, int, int], packed: Any) -> None:
    from cuda.bindings import driver

    device = torch.cuda.current_device()
    if not int(_checked(driver.cuCtxGetCurrent())):  # a thread that has not used the device yet
        _checked(driver.cuCtxSetCurrent(_checked(driver.cuDevicePrimaryCtxRetain(device))))
    parameter = ctypes.c_void_p(ctypes.addressof(packed))  # the one parameter's address; the driver copies it
    _checked(
        driver.cuLaunchKernel(
            _loaded(kernel, device), *grid, kernel.threads, 1, 1, kernel.shared_bytes,
            torch.cuda.current_stream().cuda_stream, ctypes.addressof(parameter), 0,
        )
    )  # fmt: skip


@functools.cache
def _loaded(kernel: Kernel, device: int) -> Any:
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(device)
    module = _checked(driver.cuModuleLoadData(cubin(kernel, f"sm_{major}{minor}")))
    function = _checked(driver.cuModuleGetFunction(module, kernel.name.encode()))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _checked(driver.cuFuncSetAttribute(function, attribute, kernel.shared_bytes))
    return function


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of cuda-bindings answers. Raises RuntimeError where it failed."""
    status, *values = result
    if int(status):
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
