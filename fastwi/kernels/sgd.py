"""SGD with momentum on all rows of [M, P] in one pass, each member at its own rate (as torch.optim.SGD defines it).

    d = g + wd w
    v = mu v + d
    w = w - r_m v              or, with Nesterov,    w = w - r_m (d + mu v)

in float32, with v = 0 before the first step. Memory moved a parameter: 20 bytes, and 2 for a low-precision copy.

On a GPU with Triton: one launch, which can be captured in a CUDA graph. On a CPU: torch's fused SGD, row after row.

Shapes: M members, P parameters of each.
"""

import torch
from torch import Tensor

from fastwi.config.schema import OptimizerConfig
from fastwi.kernels import gpu
from fastwi.kernels.gpu import rounded, row_alignment, tl, triton

BLOCK = 2048  # values of a program: 8 a thread, in each float32 matrix two accesses of 16 bytes
WARPS = 8


def sgd_reference_(
    weights_MP: Tensor,
    gradient_MP: Tensor,
    momentum_MP: Tensor,
    rate_M: Tensor,
    optimizer: OptimizerConfig,
    low_MP: Tensor | None = None,
    skip_M: Tensor | None = None,
) -> None:
    """`sgd_` in torch's own functions, in any float dtype, on any device, without waiting for it."""
    v_MP = step_MP = gradient_MP + optimizer.weight_decay * weights_MP
    if optimizer.momentum:
        v_MP = optimizer.momentum * momentum_MP + v_MP
        step_MP = step_MP + optimizer.momentum * v_MP if optimizer.nesterov else v_MP
    w_MP = weights_MP - rate_M[:, None] * step_MP
    skipped_M1 = None if skip_M is None else (skip_M != 0)[:, None]
    weights_MP.copy_(w_MP if skipped_M1 is None else torch.where(skipped_M1, weights_MP, w_MP))
    if optimizer.momentum:
        momentum_MP.copy_(v_MP if skipped_M1 is None else torch.where(skipped_M1, momentum_MP, v_MP))
    if low_MP is not None:
        low_MP.copy_(weights_MP)


def sgd_row_(
    weights_P: Tensor, gradient_P: Tensor, momentum_P: Tensor, rate: float, optimizer: OptimizerConfig
) -> None:
    """One step of one member by torch's fused SGD. Without momentum, momentum_P is neither read nor written."""
    torch._fused_sgd_(
        [weights_P], [gradient_P], [momentum_P] if optimizer.momentum else [], lr=rate, dampening=0.0,
        weight_decay=optimizer.weight_decay, momentum=optimizer.momentum, nesterov=optimizer.nesterov,
        maximize=False, is_first_step=False,
    )  # fmt: skip


@torch.no_grad()
def sgd_(
    weights_MP: Tensor,
    gradient_MP: Tensor,
    momentum_MP: Tensor,
    rate_M: Tensor,
    optimizer: OptimizerConfig,
    low_MP: Tensor | None = None,
    skip_M: Tensor | None = None,
) -> None:
    """One step of every member, in place: weights and momentum change, gradients do not. Nothing is checked.

    weights, gradients and momentum: float32 [M, P], rows contiguous, no memory in common. rate_M: float32, may be
    expanded. Without momentum, momentum_MP is neither read nor written. low_MP: bfloat16 or float16, receives the
    new weights. skip_M: bool or integer; members with a nonzero entry keep weights and momentum to the bit.
    """
    M, P = weights_MP.shape
    if not gpu.has_triton(weights_MP.device):
        if weights_MP.device.type != "cpu":
            sgd_reference_(weights_MP, gradient_MP, momentum_MP, rate_M, optimizer, low_MP, skip_M)
            return
        skipped = [False] * M if skip_M is None else skip_M.tolist()
        for m, (rate, skip) in enumerate(zip(rate_M.tolist(), skipped, strict=True)):
            if not skip:
                sgd_row_(weights_MP[m], gradient_MP[m], momentum_MP[m], rate, optimizer)
        if low_MP is not None:
            low_MP.copy_(weights_MP)
    elif M and P:
        blocks = triton.cdiv(P, BLOCK)
        if skip_M is not None and skip_M.dtype == torch.bool:
            skip_M = skip_M.view(torch.uint8)
        moving = [momentum_MP] if optimizer.momentum else []
        matrices = (weights_MP, gradient_MP, momentum_MP, low_MP, rate_M, skip_M)
        with gpu.on(weights_MP.device):
            sgd_kernel[(M * blocks,)](
                weights_MP, gradient_MP, momentum_MP if moving else None, rate_M, skip_M, low_MP, P, blocks,
                *(0 if x is None else x.stride(0) for x in matrices),
                optimizer.momentum, optimizer.weight_decay, NESTEROV=optimizer.nesterov,
                ALIGN=row_alignment(16, weights_MP, gradient_MP, *moving),
                LOW_ALIGN=1 if low_MP is None else row_alignment(8, low_MP), BLOCK=BLOCK, num_warps=WARPS,
                enable_fp_fusion=True,  # explicit: the default changes between Triton versions
            )  # fmt: skip


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    w_ptr, g_ptr, v_ptr, low_ptr, columns, mask, rate, skipped, mu, wd, NESTEROV: tl.constexpr
):  # fmt: skip
    """The equation on `columns` of one row. Without a mask all of them are there."""
    w = tl.load(w_ptr + columns, mask=mask)
    d = tl.load(g_ptr + columns, mask=mask)
    if v_ptr is not None:
        v = tl.load(v_ptr + columns, mask=mask)
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
    rate_M,  # float32
    skip_M,  # any integer, or None: none is skipped
    low_MP,  # bfloat16 or float16, or None
    P,
    blocks,  # of a row
    weights_stride,
    gradient_stride,
    momentum_stride,
    low_stride,
    rate_stride,
    skip_stride,
    mu,
    wd,
    NESTEROV: tl.constexpr,
    ALIGN: tl.constexpr,  # bytes that divide every row's address in the float32 matrices
    LOW_ALIGN: tl.constexpr,  # and in low_MP
    BLOCK: tl.constexpr,
):
    """One block of one member's row. Places are int64: populations pass 2^31 weights."""
    program = tl.program_id(0)
    number = program // blocks
    start = (program - number * blocks).to(tl.int64) * BLOCK
    m = number.to(tl.int64)
    rate = tl.load(rate_M + m * rate_stride)
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
        _update(w_ptr, g_ptr, v_ptr, low_ptr, columns, None, rate, skipped, mu, wd, NESTEROV)
    else:
        _update(w_ptr, g_ptr, v_ptr, low_ptr, columns, columns < P, rate, skipped, mu, wd, NESTEROV)
