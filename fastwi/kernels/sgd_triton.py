"""The Triton kernel of SGD with momentum on the rows of [M, P], each at its own rate, in one launch.

    v = mu v + (u g + wd w);    w = w - r_m v    or, with Nesterov,    w = w - r_m (g + wd w + mu v)

in float32 (u: inverse scale of the gradients). Rates, the step that picks them, scales and members to skip are read
from the device. Rows are cut into blocks of their own, so what a member becomes depends on its own row alone.

Shapes: M members, P parameters of each, S steps of a rate table.
"""

import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwi.kernels.stacked_conv_triton import rounded

BLOCK = 2048  # values of a program: 8 a thread, in each float32 matrix two accesses of 16 bytes
WARPS = 8


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    w_ptr, g_ptr, v_ptr, low_ptr, columns, mask, rate, inverse, skipped, mu, wd, NESTEROV: tl.constexpr
):  # fmt: skip
    """The equation on `columns` of one row. Without a mask all of them are there."""
    w = tl.load(w_ptr + columns, mask=mask)
    d = tl.load(g_ptr + columns, mask=mask)
    if v_ptr is not None:
        v = tl.load(v_ptr + columns, mask=mask)
    if inverse is not None:
        d *= inverse
    d += wd * w
    if v_ptr is not None:
        new_v = mu * v + d
        d = d + mu * new_v if NESTEROV else new_v
        if skipped is not None:
            new_v = tl.where(skipped, v, new_v)
        tl.store(v_ptr + columns, new_v, mask=mask)
    new_w = w - rate * d
    if skipped is not None:
        new_w = tl.where(skipped, w, new_w)
    tl.store(w_ptr + columns, new_w, mask=mask)
    if low_ptr is not None:
        tl.store(low_ptr + columns, rounded(new_w, low_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sgd_kernel(  # type: ignore[no-untyped-def]
    weights_MP,  # float32
    gradient_MP,  # float32
    momentum_MP,  # float32, or None where mu = 0: it is then neither read nor written
    rate_SM,  # float32
    step,  # int64 [1], or None: 0
    inverse_M,  # float32, or None: 1
    skip_M,  # any integer, or None: none is skipped
    low_MP,  # bfloat16 or float16, or None
    P,
    blocks,  # of a row
    weights_stride,
    gradient_stride,
    momentum_stride,
    low_stride,
    rate_step_stride,
    rate_member_stride,
    inverse_stride,
    skip_stride,
    mu,
    wd,
    NESTEROV: tl.constexpr,
    ALIGN: tl.constexpr,  # bytes that divide every row's address in the float32 matrices
    LOW_ALIGN: tl.constexpr,  # and in low_MP
    BLOCK: tl.constexpr,
):
    """One block of one member. Places are int64: populations pass 2^31 weights."""
    program = tl.program_id(0)
    number = program // blocks
    start = (program - number * blocks) * BLOCK
    m = number.to(tl.int64)
    rate_ptr = rate_SM + m * rate_member_stride
    if step is not None:
        rate_ptr += tl.load(step) * rate_step_stride
    rate = tl.load(rate_ptr)
    inverse = None
    if inverse_M is not None:
        inverse = tl.load(inverse_M + m * inverse_stride)
    skipped = None
    if skip_M is not None:
        skipped = tl.load(skip_M + m * skip_stride) != 0

    # The hints let the compiler move 16 bytes at a time; of low_MP 8, the same 4 values, or it would shuffle threads.
    w_ptr = tl.multiple_of(weights_MP + m * weights_stride, ALIGN)
    g_ptr = tl.multiple_of(gradient_MP + m * gradient_stride, ALIGN)
    v_ptr = None
    if momentum_MP is not None:
        v_ptr = tl.multiple_of(momentum_MP + m * momentum_stride, ALIGN)
    low_ptr = None
    if low_MP is not None:
        low_ptr = tl.multiple_of(low_MP + m * low_stride, LOW_ALIGN)
    columns = start + tl.arange(0, BLOCK)
    if start + BLOCK <= P:  # a mask, even of all ones, would split the 16-byte accesses
        _update(w_ptr, g_ptr, v_ptr, low_ptr, columns, None, rate, inverse, skipped, mu, wd, NESTEROV)
    else:
        _update(w_ptr, g_ptr, v_ptr, low_ptr, columns, columns < P, rate, inverse, skipped, mu, wd, NESTEROV)


def launch(
    weights_MP: Tensor,
    gradient_MP: Tensor,
    momentum_MP: Tensor,
    rate_SM: Tensor,
    step: Tensor | None,
    mu: float,
    wd: float,
    nesterov: bool,
    low_MP: Tensor | None,
    skip_M: Tensor | None,
    inverse_M: Tensor | None,
) -> None:
    """One step of every member, in place. Shapes and dtypes as the kernel says; columns of matrices are contiguous.

    One launch; asynchronous on a GPU.
    """
    M, P = weights_MP.shape
    if weights_MP.numel() == 0:
        return
    blocks = triton.cdiv(P, BLOCK)
    if skip_M is not None and skip_M.dtype == torch.bool:
        skip_M = skip_M.view(torch.uint8)
    matrices = [weights_MP, gradient_MP, *([momentum_MP] if mu else [])]
    on_gpu = weights_MP.device.type == "cuda"
    with torch.cuda.device(weights_MP.device) if on_gpu else contextlib.nullcontext():
        sgd_kernel[(M * blocks,)](
            weights_MP,
            gradient_MP,
            momentum_MP if mu else None,
            rate_SM,
            step,
            inverse_M,
            skip_M,
            low_MP,
            P,
            blocks,
            weights_MP.stride(0),
            gradient_MP.stride(0),
            momentum_MP.stride(0),
            0 if low_MP is None else low_MP.stride(0),
            rate_SM.stride(0),
            rate_SM.stride(1),
            0 if inverse_M is None else inverse_M.stride(0),
            0 if skip_M is None else skip_M.stride(0),
            mu,
            wd,
            NESTEROV=nesterov,
            ALIGN=_row_alignment(16, *matrices),
            LOW_ALIGN=1 if low_MP is None else _row_alignment(8, low_MP),
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=True,  # said aloud: the default changes between Triton versions
        )


def _row_alignment(most: int, *matrices: Tensor) -> int:
    """Bytes, at most `most`, that divide the address of every row."""
    return math.gcd(most, *(n for x in matrices for n in (x.data_ptr(), x.stride(0) * x.element_size())))
