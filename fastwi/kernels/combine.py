"""Copies and weighted sums of rows: n-way averages, and the networks at many places on a line.

    result[l, p] = sum over the terms t of sum l of weight[t] row_t[p]

Sums are made in float64, member by member, and rounded once. A sum is the same bit for bit on every machine, beside
any other, and of two networks in either order, which a matrix product's is not.

All sums are one pass: of `combine.cpp` on a CPU, of a Triton kernel on a GPU. Where neither can be built, torch sums
row after row. All three round each product and each sum, and add terms in their order: they give the same bits.

Symbols: L sums of T terms in all; P columns.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.kernels import gpu
from fastwi.kernels.cpu import call, library
from fastwi.kernels.gpu import row_pointer, tl, triton

COLUMNS = 1 << 20  # that the reference sums at a time: 8 MB in float64
BLOCK = 2048  # columns of a program of the Triton kernel: 8 a thread, two accesses of 16 bytes a row
WARPS = 8
FUSED = False  # a fused multiply-add would not round the product


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
    def of(
        cls, counts_L: Sequence[int], rows_T2: NDArray[np.int64], weights_of_L: Sequence[Sequence[float]]
    ) -> "Terms":
        """Sum l has the next counts_L[l] of the rows (matrix, row); those of weight zero take no part.

        Raises ValueError unless there is one weight a row, and all are finite.
        """
        if list(counts_L) != list(map(len, weights_of_L)):
            raise ValueError("every sum needs one weight for each of its rows")
        weight_T = np.array([weight for weights in weights_of_L for weight in weights], dtype=np.float64)
        if not np.isfinite(weight_T).all():
            raise ValueError("weights must be finite")
        taken = weight_T != 0
        sum_T = np.repeat(np.arange(len(counts_L)), counts_L)[taken]
        matrix_T, row_T = rows_T2[taken].T
        return cls(len(counts_L), sum_T, matrix_T, row_T, weight_T[taken])

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """[L + 1]: the first term of each sum, and the number of all."""
        return np.searchsorted(self.sum_T, np.arange(self.sums + 1))


@torch.no_grad()
def copy_rows_(
    result_LP: Tensor, matrices: Sequence[Tensor], matrix_L: NDArray[np.int64], row_L: NDArray[np.int64]
) -> None:
    """Overwrite row l of `result_LP` with row row_L[l] of matrices[matrix_L[l]].

    All have one dtype, P columns, contiguous rows, one device. Raises ValueError as `combine_rows_` does.
    """
    result_at_L, row_at_L = _checked_addresses(result_LP, matrices, matrix_L, row_L, len(row_L))
    if result_LP.device.type == "cpu" and library() is not None:
        row_bytes = result_LP.shape[1] * result_LP.element_size()
        call("copy_rows", result_at_L.ctypes.data, row_at_L.ctypes.data, len(row_at_L), row_bytes)
        return
    views = [matrix.unbind(0) for matrix in matrices]
    torch._foreach_copy_(list(result_LP.unbind(0)), [views[m][row] for m, row in zip(matrix_L, row_L, strict=True)])


@torch.no_grad()
def combine_rows_(result_LP: Tensor, matrices: Sequence[Tensor], terms: Terms) -> None:
    """Overwrite row l of `result_LP` with sum l of `terms` over rows of `matrices`.

    All are float32 with P columns, rows contiguous, on one device. A row that is in no term is not read. Raises
    ValueError for other matrices, for rows that are not there, and where a row of the result is also read.
    """
    if result_LP.dtype != torch.float32:
        raise ValueError(f"sums are float32, not {result_LP.dtype}")
    result_at_L, row_at_T = _checked_addresses(result_LP, matrices, terms.matrix_T, terms.row_T, terms.sums)
    L, P = result_LP.shape
    if not L or not P:
        return
    if gpu.has_triton(result_LP.device):
        table = np.concatenate([result_at_L, row_at_T, terms.starts, terms.weight_T.view(np.int64)])
        aligned = not int(np.bitwise_or.reduce(table[: L + len(row_at_T)])) % 16
        blocks = triton.cdiv(P, BLOCK)
        with gpu.on(result_LP.device):
            combine_kernel[(L * blocks,)](
                torch.from_numpy(table).to(result_LP.device, non_blocking=True), L, len(row_at_T), P, blocks,
                ALIGNED=aligned, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=FUSED,
            )  # fmt: skip
    elif result_LP.device.type == "cpu" and library() is not None:
        arrays = (result_at_L, row_at_T, terms.weight_T, terms.starts)
        call("combine_rows", *(array.ctypes.data for array in arrays), L, P)
    else:
        combine_reference_(result_LP, matrices, terms)


def combine_reference_(result_LP: Tensor, matrices: Sequence[Tensor], terms: Terms) -> None:
    """`combine_rows_` in torch's own functions, unchecked."""
    result_LP.zero_()
    views = [matrix.unbind(0) for matrix in matrices]
    for result_P, (first, last) in zip(result_LP, itertools.pairwise(terms.starts), strict=True):
        rows = [views[terms.matrix_T[t]][terms.row_T[t]] for t in range(first, last)]
        for start in range(0, len(result_P) if rows else 0, COLUMNS):
            columns = slice(start, start + COLUMNS)
            result_P[columns] = weighted_sum([row[columns] for row in rows], terms.weight_T[first:last].tolist())


@torch.no_grad()
def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of weight x tensor in the first one's dtype, device and memory format. Weights of zero take no part."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64, requires_grad=False)
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight != 0.0:
            # A product and a sum: `alpha` of torch's sum is rounded once or twice, as the processor has it.
            total += tensor.to(total.device, torch.float64) * weight
    return total.to(tensors[0].dtype)


def require_alike(matrices: Sequence[Tensor]) -> None:
    """Raise ValueError unless all are matrices of one dtype, width and device, with contiguous rows."""
    first = matrices[0]
    for matrix in matrices:
        same = matrix.dtype == first.dtype and matrix.device == first.device and matrix.shape[1:] == first.shape[1:]
        if not same or matrix.ndim != 2 or (matrix.shape[1] > 1 and matrix.stride(1) != 1):
            raise ValueError(
                f"a matrix is {matrix.dtype} {tuple(matrix.shape)} on {matrix.device}, strides {matrix.stride()}; it "
                f"must be {first.dtype} [rows, columns], {first.shape[1:].numel()} wide, on {first.device}, its rows "
                "contiguous"
            )


def row_addresses(matrix: Tensor, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The address in memory of each of `rows`."""
    return matrix.data_ptr() + rows * (matrix.stride(0) * matrix.element_size())


def _checked_addresses(
    result_LP: Tensor, matrices: Sequence[Tensor], matrix_T: NDArray[np.int64], row_T: NDArray[np.int64], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The addresses in memory of the rows of the result and of each term. Raises ValueError where they don't fit."""
    require_alike([result_LP, *matrices])
    if len(result_LP) != rows:
        raise ValueError(f"there are {len(result_LP)} rows for {rows} results; there needs to be one for each")
    members = np.array(list(map(len, matrices)))
    outside = (row_T < 0) | (row_T >= members[matrix_T])
    if outside.any():
        raise ValueError(f"row {row_T[outside][0]} is named; there are rows 0 to {members[matrix_T][outside][0] - 1}")
    result_at = row_addresses(result_LP, np.arange(rows))
    bases = np.array([matrix.data_ptr() for matrix in matrices])
    strides = np.array([matrix.stride(0) * matrix.element_size() for matrix in matrices])
    row_at = bases[matrix_T] + row_T * strides[matrix_T]
    if result_LP.shape[1] and not set(result_at.tolist()).isdisjoint(row_at.tolist()):
        raise ValueError("a row is both read and written; write the results to other rows")
    return result_at, row_at


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    result, rows, weights, first, last, columns, mask, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The equation on `columns`. Without a mask all of them are there."""
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for term in range(first, last):
        row = row_pointer(rows + term, tl.float32, ALIGNED)
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
    result = row_pointer(table + number, tl.float32, ALIGNED)
    rows, starts = table + L, table + L + T
    weights = starts + L + 1
    first, last = tl.load(starts + number), tl.load(starts + number + 1)
    start = (program - number * blocks).to(tl.int64) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    if start + BLOCK <= P:  # a mask, even of all ones, would split the 16-byte accesses
        _combine(result, rows, weights, first, last, columns, None, ALIGNED, BLOCK)
    else:
        _combine(result, rows, weights, first, last, columns, columns < P, ALIGNED, BLOCK)
