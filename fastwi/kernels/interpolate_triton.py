"""The Triton kernel that interpolates many pairs of equally shaped spans of memory in one launch.

Symbols: T tasks (one pair of spans and one destination each), G programs of the launch.
    c = a + alpha (b - a) where alpha < 1/2, b - (1 - alpha) (b - a) elsewhere; c = a at alpha = 0, b at alpha
    = 1
It reads addresses from a table, so rows of one matrix and tensors of separate networks are the same to it.
"""

import contextlib

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

BLOCK = 4096  # elements of a program: 16 a thread
WARPS = 8
_POINTEE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _mix(a, b, alpha):  # type: ignore[no-untyped-def]
    """The equation, in float32."""
    step = b - a
    mixed = tl.where(alpha < 0.5, a + alpha * step, b - (1.0 - alpha) * step)
    return tl.where(alpha == 0.0, a, tl.where(alpha == 1.0, b, mixed))


@triton.jit
def interpolate_kernel(  # type: ignore[no-untyped-def]
    table_5T,  # int64 [5, T]: address of a, of b, of c, elements, first program
    alpha_T,  # float32 [T]
    task_G,  # int32 [G]: the task of each program
    tasks,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,  # every address is a multiple of 16 bytes
    BLOCK: tl.constexpr,
):
    """One block of one task. All of a and b that it reads is read before it writes."""
    program = tl.program_id(0)
    task = tl.load(task_G + program)
    a_ptr = tl.load(table_5T + task).to(tl.pointer_type(ELEMENT))
    b_ptr = tl.load(table_5T + tasks + task).to(tl.pointer_type(ELEMENT))
    c_ptr = tl.load(table_5T + 2 * tasks + task).to(tl.pointer_type(ELEMENT))
    if ALIGNED:  # lets the compiler use 16-byte loads and stores
        a_ptr = tl.multiple_of(a_ptr, 16)
        b_ptr = tl.multiple_of(b_ptr, 16)
        c_ptr = tl.multiple_of(c_ptr, 16)
    elements = tl.load(table_5T + 3 * tasks + task)
    start = (program - tl.load(table_5T + 4 * tasks + task)) * BLOCK
    alpha = tl.load(alpha_T + task)
    columns = start + tl.arange(0, BLOCK)
    if start + BLOCK <= elements:  # a mask, even of all ones, would split the 16-byte accesses
        a = tl.load(a_ptr + columns).to(tl.float32)
        b = tl.load(b_ptr + columns).to(tl.float32)
        tl.store(c_ptr + columns, _mix(a, b, alpha).to(ELEMENT))
    else:
        inside = columns < elements
        a = tl.load(a_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(c_ptr + columns, _mix(a, b, alpha).to(ELEMENT), mask=inside)


def launch(
    a_T: NDArray[np.int64],
    b_T: NDArray[np.int64],
    c_T: NDArray[np.int64],
    elements_T: NDArray[np.int64],
    alpha_T: NDArray[np.float32],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Interpolate T pairs given by address: elements_T[t] values at a_T[t] and b_T[t] into c_T[t].

    The caller keeps the memory alive and sees to it that no destination is read by another task. dtype is
    float32, bfloat16 or float16. One launch; asynchronous on a GPU.
    """
    programs_T = -(-elements_T // BLOCK)
    total = int(programs_T.sum())
    if total == 0:
        return
    first_T = np.cumsum(programs_T) - programs_T
    task_G = np.repeat(np.arange(len(elements_T), dtype=np.int32), programs_T)
    aligned = not int(np.bitwise_or.reduce(np.concatenate([a_T, b_T, c_T]))) % 16
    table_5T = torch.from_numpy(np.stack([a_T, b_T, c_T, elements_T, first_T])).to(device, non_blocking=True)
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        interpolate_kernel[(total,)](
            table_5T,
            torch.from_numpy(alpha_T).to(device, non_blocking=True),
            torch.from_numpy(task_G).to(device, non_blocking=True),
            len(elements_T),
            ELEMENT=_POINTEE[dtype],
            ALIGNED=aligned,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=True,  # said aloud: the default changes between Triton versions
        )
