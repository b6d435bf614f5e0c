"""The Triton kernel that sums weighted rows in float64: all sums of `fastwi.kernels.combine` in one launch.

    result[l, p] = sum over the terms t of sum l of weight[t] row_t[p]

Each product and each sum is rounded, and terms are added in their order: the result is that of the reference, to the
bit. Symbols: L sums of T terms in all; P columns.
"""

import contextlib

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

BLOCK = 2048  # columns of a program: 8 a thread, two accesses of 16 bytes a row
WARPS = 8
FUSED = False  # a fused multiply-add would not round the product


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    result, rows, weights, first, last, columns, mask, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The equation on `columns`. Without a mask all of them are there."""
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for term in range(first, last):
        row = tl.load(rows + term).to(tl.pointer_type(tl.float32))
        if ALIGNED:  # lets the compiler use 16-byte loads
            row = tl.multiple_of(row, 16)
        weight = tl.load(weights + term).to(tl.float64, bitcast=True)
        total += tl.load(row + columns, mask=mask).to(tl.float64) * weight
    tl.store(result + columns, total.to(tl.float32), mask=mask)


@triton.jit
def combine_kernel(  # type: ignore[no-untyped-def]
    table,  # int64: address of each result [L] and each row [T], starts [L + 1], bits of the weights [T]
    L,
    T,
    P,
    blocks,  # of a row
    ALIGNED: tl.constexpr,  # every address is a multiple of 16 bytes
    BLOCK: tl.constexpr,
):
    """One block of columns of one sum."""
    program = tl.program_id(0)
    number = program // blocks
    result = tl.load(table + number).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        result = tl.multiple_of(result, 16)
    rows, starts = table + L, table + L + T
    weights = starts + L + 1
    first, last = tl.load(starts + number), tl.load(starts + number + 1)
    start = (program - number * blocks) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    if start + BLOCK <= P:  # a mask, even of all ones, would split the 16-byte accesses
        _combine(result, rows, weights, first, last, columns, None, ALIGNED, BLOCK)
    else:
        _combine(result, rows, weights, first, last, columns, columns < P, ALIGNED, BLOCK)


def launch(
    result_at_L: NDArray[np.int64],
    row_at_T: NDArray[np.int64],
    weight_T: NDArray[np.float64],
    starts: NDArray[np.int64],
    columns: int,
    device: torch.device,
) -> None:
    """Sum l has the terms starts[l] ... starts[l + 1] - 1; rows of float32 by address. Asynchronous on a GPU."""
    blocks = triton.cdiv(columns, BLOCK)
    table = np.concatenate([result_at_L, row_at_T, starts, weight_T.view(np.int64)])
    addresses = table[: len(result_at_L) + len(row_at_T)]
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        combine_kernel[(len(result_at_L) * blocks,)](
            torch.from_numpy(table).to(device, non_blocking=True),
            len(result_at_L),
            len(row_at_T),
            columns,
            blocks,
            ALIGNED=not int(np.bitwise_or.reduce(addresses)) % 16,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=FUSED,
        )
