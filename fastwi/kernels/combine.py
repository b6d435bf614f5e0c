"""Weighted sums of networks: n-way averages, and the networks at many places on a line.

Summed in float64, member by member, and rounded once. A matrix product would be quicker, but its library chooses how
to sum by the processor and by the number of rows. Here a sum is the same bit for bit on every machine, beside any
other, and of two networks in either order; the mean of two is the exact mean, rounded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

COLUMNS = 1 << 20  # at a time: 8 MB in float64


@torch.no_grad()
def combine_rows(weights_LM: Tensor, x_MP: Tensor) -> Tensor:
    """result_LP: row l is the sum over m of weights_LM[l, m] x x_MP[m].

    weights_LM: float32 or float64, any finite values. x_MP: float32. A row of weight zero takes no part, even where
    it holds NaN or infinities. Returns float32 [L, P]. Raises ValueError for other shapes or dtypes and for weights
    that are not finite.
    """
    if weights_LM.ndim != 2 or x_MP.ndim != 2 or weights_LM.shape[1] != x_MP.shape[0]:
        raise ValueError(
            f"weights_LM has shape {tuple(weights_LM.shape)} and x_MP {tuple(x_MP.shape)}; "
            "the first needs one column for each row of the second"
        )
    if weights_LM.dtype not in (torch.float32, torch.float64) or x_MP.dtype != torch.float32:
        raise ValueError(
            f"weights_LM is {weights_LM.dtype} and x_MP {x_MP.dtype}; they need to be float32, or float64 for weights"
        )
    if not bool(torch.isfinite(weights_LM).all()):
        raise ValueError("weights must be finite")
    result_LP = x_MP.new_empty(len(weights_LM), x_MP.shape[1])
    for weights_M, result_P in zip(weights_LM.tolist(), result_LP, strict=True):
        for first in range(0, len(result_P), COLUMNS):
            columns = slice(first, first + COLUMNS)
            result_P[columns] = weighted_sum(list(x_MP[:, columns]), weights_M)
    return result_LP


@torch.no_grad()
def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of weight x tensor in the first one's dtype, device and memory format. Weights of zero take no part."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64, requires_grad=False)
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight != 0.0:
            # A product and a sum: `alpha` of torch's sum is rounded once or twice, as the processor has it.
            total += tensor.to(total.device, torch.float64) * weight
    return total.to(tensors[0].dtype)
