"""Weighted sums of rows as one small matrix product: n-way averages, and a line of 25 alphas at once."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def combine_rows(weights_LM: Tensor, x_MP: Tensor) -> Tensor:
    """result_LP = weights_LM @ x_MP, summed in float32 whatever precision the process has chosen for matmul.

    weights_LM, x_MP: float32, any finite weights. A row of weight zero takes no part, even where it holds NaN
    or infinities. Returns float32 [L, P]. Raises ValueError for other shapes or dtypes and for weights that
    are not finite.
    """
    if weights_LM.ndim != 2 or x_MP.ndim != 2 or weights_LM.shape[1] != x_MP.shape[0]:
        raise ValueError(
            f"weights_LM has shape {tuple(weights_LM.shape)} and x_MP {tuple(x_MP.shape)}; "
            "the first needs one column for each row of the second"
        )
    if weights_LM.dtype != torch.float32 or x_MP.dtype != torch.float32:
        raise ValueError(f"weights_LM is {weights_LM.dtype} and x_MP {x_MP.dtype}; both must be float32")
    if not bool(torch.isfinite(weights_LM).all()):
        raise ValueError("weights must be finite")
    weights_LM = weights_LM.to(x_MP.device)
    with _full_float32():
        result_LP = weights_LM @ x_MP
        if result_LP.numel() == 0:
            return result_LP
        # 0 * NaN is NaN: one diverged member would spoil every average that leaves it out.
        largest_L = torch.linalg.vector_norm(result_LP, ord=float("inf"), dim=1)
        for row in torch.nonzero(~torch.isfinite(largest_L)).flatten().tolist():
            taking_part = torch.nonzero(weights_LM[row]).flatten()
            result_LP[row] = weights_LM[row, taking_part] @ x_MP[taking_part]
    return result_LP


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Keep TF32 and bf16 out of float32 matrix products, then restore the process's choice."""
    cuda: Any = torch.backends.cuda.matmul
    cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = cuda.fp32_precision, cpu.fp32_precision
    cuda.fp32_precision = cpu.fp32_precision = "ieee"
    try:
        yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision = before
