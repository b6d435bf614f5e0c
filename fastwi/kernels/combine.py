"""Weighted sums of networks: n-way averages, and the networks at many places on a line.

Summed in float64, member by member, and rounded once. A matrix product would be quicker, but its library chooses how
to sum by the processor and by the number of rows. Here a sum is the same bit for bit on every machine, beside any
other, and of two networks in either order; the mean of two is the exact mean, rounded.

Symbols: L sums of T terms in all; P columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COLUMNS = 1 << 20  # at a time: 8 MB in float64


@dataclass(frozen=True)
class Terms:
    """The terms of all sums, in order: term t adds weight_T[t] x row row_T[t] of matrix matrix_T[t] to sum sum_T[t].

    No weight is zero. sum_T ascends; a sum without terms is zero.
    """

    sums: int
    sum_T: NDArray[np.int64]
    matrix_T: NDArray[np.int64]
    row_T: NDArray[np.int64]
    weight_T: NDArray[np.float64]

    @classmethod
    def of(cls, rows_of_L: Sequence[Sequence[tuple[int, int]]], weights_of_L: Sequence[Sequence[float]]) -> "Terms":
        """Sum l has the rows (matrix, row) rows_of_L[l]; those of weight zero take no part.

        Raises ValueError unless there is one weight a row, and all are finite.
        """
        counts = [len(rows) for rows in rows_of_L]
        if counts != [len(weights) for weights in weights_of_L]:
            raise ValueError("every sum needs one weight for each of its rows")
        rows_T2 = np.array([row for rows in rows_of_L for row in rows], dtype=np.int64).reshape(-1, 2)
        weight_T = np.array([weight for weights in weights_of_L for weight in weights], dtype=np.float64)
        if not np.isfinite(weight_T).all():
            raise ValueError("weights must be finite")
        taken = weight_T != 0
        sum_T = np.repeat(np.arange(len(counts)), counts)[taken]
        return cls(len(counts), sum_T, rows_T2[taken, 0], rows_T2[taken, 1], weight_T[taken])


@torch.no_grad()
def combine_rows_(result_LP: Tensor, matrices: Sequence[Tensor], terms: Terms) -> None:
    """Overwrite row l of `result_LP` with sum l of `terms` over rows of `matrices`.

    All are float32 with P columns, rows contiguous, on one device. A row that is in no term is not read. Raises
    ValueError for other matrices, for rows that are not there, and where a row of the result is in a term.
    """
    _check(result_LP, matrices, terms)
    starts = np.searchsorted(terms.sum_T, np.arange(terms.sums + 1))
    for result_P, first, last in zip(result_LP, starts[:-1], starts[1:], strict=True):
        rows = [matrices[terms.matrix_T[t]][terms.row_T[t]] for t in range(first, last)]
        for start in range(0, len(result_P), COLUMNS):
            columns = slice(start, start + COLUMNS)
            views = [row[columns] for row in rows]
            weights = terms.weight_T[first:last].tolist()
            result_P[columns] = weighted_sum(views, weights) if views else 0.0


@torch.no_grad()
def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of weight x tensor in the first one's dtype, device and memory format. Weights of zero take no part."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64, requires_grad=False)
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight != 0.0:
            # A product and a sum: `alpha` of torch's sum is rounded once or twice, as the processor has it.
            total += tensor.to(total.device, torch.float64) * weight
    return total.to(tensors[0].dtype)


def _addresses(matrices: Sequence[Tensor], matrix_T: NDArray[np.int64], row_T: NDArray[np.int64]) -> NDArray[Any]:
    """The address in memory of each row."""
    bases = np.array([matrix.data_ptr() for matrix in matrices])
    strides = np.array([matrix.stride(0) * matrix.element_size() for matrix in matrices])
    return bases[matrix_T] + row_T * strides[matrix_T]


def _check(result_LP: Tensor, matrices: Sequence[Tensor], terms: Terms) -> None:
    """Raise ValueError unless `combine_rows_` takes these."""
    for matrix in (result_LP, *matrices):
        same = matrix.device == result_LP.device and matrix.shape[1:] == result_LP.shape[1:] and matrix.ndim == 2
        if not same or matrix.dtype != torch.float32 or (matrix.shape[1] > 1 and matrix.stride(1) != 1):
            raise ValueError(
                f"a matrix is {matrix.dtype} {tuple(matrix.shape)} on {matrix.device}, strides {matrix.stride()}; "
                f"it needs to be float32, {result_LP.shape[1]} wide, on {result_LP.device}, its rows contiguous"
            )
    if len(result_LP) != terms.sums:
        raise ValueError(f"the result has {len(result_LP)} rows for {terms.sums} sums; it needs one for each")
    members = np.array([len(matrix) for matrix in matrices])
    outside = (terms.row_T < 0) | (terms.row_T >= members[terms.matrix_T])
    if outside.any():
        raise ValueError(f"a sum names row {terms.row_T[outside][0]}; there are rows 0 to {members.min() - 1}")
    results = _addresses([result_LP], np.zeros(terms.sums, dtype=np.int64), np.arange(terms.sums))
    if result_LP.shape[1] and np.isin(results, _addresses(matrices, terms.matrix_T, terms.row_T)).any():
        raise ValueError("a row of the result is also a term of a sum; write the sums to other rows")
