"""Triton, and what the launches of its kernels share.

Importing Triton takes 0.1 s and 80 MB, so it is imported only where there is a CUDA device or TRITON_INTERPRET is
set (1: kernels are interpreted; 0: tests compile them). Elsewhere kernels are functions that nothing calls.
"""

import contextlib
import functools
import importlib.util
import math
import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

STORAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_IMPORTED = importlib.util.find_spec("triton") is not None and (
    "TRITON_INTERPRET" in os.environ or torch.cuda.device_count() > 0  # counts without starting CUDA
)
if TYPE_CHECKING or _IMPORTED:
    import triton
    import triton.language as tl

    _interpreted = bool(triton.knobs.runtime.interpret)
else:

    class triton:
        """Stands for the module in decorators."""

        @staticmethod
        def jit(function: Any) -> Any:
            """The function itself."""
            return function

    class tl:
        """Stands for the module in annotations."""

        constexpr = int

    _interpreted = False

# The interpreter multiplies the bits of bf16 as integers, and rounds to bf16 towards zero.
INTERPRETED = tl.constexpr(_interpreted)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 to DTYPE, to the nearest, ties to even."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def row_pointer(place, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The address at `place` of a table, as a pointer. ALIGNED, to 16 bytes, lets accesses have 16 bytes."""
    pointer = tl.load(place).to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


def row_alignment(most: int, *matrices: Tensor) -> int:
    """Bytes, at most `most`, that divide the address of every row x[m] of `matrices`."""
    return math.gcd(most, *(n for x in matrices for n in (x.data_ptr(), x.stride(0) * x.element_size())))


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether the Triton kernels run on `device`: Triton builds its launcher with a C compiler."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    built = any(shutil.which(compiler) for compiler in compilers if compiler)
    return device.type == "cuda" and built and _IMPORTED


def by_triton(x: Tensor) -> bool:
    """Whether Triton kernels take x: by its device and dtype."""
    return has_triton(x.device) and x.dtype in STORAGE_DTYPES


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launches inside go to `device`."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
