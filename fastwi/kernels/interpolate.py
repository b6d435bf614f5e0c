"""Interpolate hundreds of pairs of rows in place.

    c = a + alpha (b - a)          where alpha < 1/2
    c = b - (1 - alpha) (b - a)    elsewhere;  exactly a at alpha = 0 and exactly b at alpha = 1
computed in float32 and rounded once to the storage dtype.

On a GPU with Triton: one launch for all pairs. Elsewhere: torch.lerp on views, which runs at the speed of
memory. Symbols: M (and N) rows of P columns, L pairs.
"""

import functools
import importlib.util
import os
import shutil
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STORAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def interpolate_rows_(
    x_MP: Tensor,
    a_L: Sequence[int] | Tensor,
    b_L: Sequence[int] | Tensor,
    alpha_L: float | Sequence[float] | Tensor,
    c_L: Sequence[int] | Tensor | None = None,
    other_NP: Tensor | None = None,
) -> None:
    """Overwrite rows c of `x_MP` with the interpolations of its rows a and of rows b, for all pairs at once.

    x_MP: float32, bfloat16 or float16 [M, P], rows contiguous. a_L, b_L, c_L: row numbers from 0; c defaults
    to a, and may name no row twice. alpha_L: any finite float32 values, one a pair or one for all. Rows b are
    read from `other_NP` [N, P] (same dtype and device) where it is given, else from x_MP.

    Rows may be read by any number of pairs, also rows that another pair overwrites: every read sees the
    values from before the call. Results for such rows go through a temporary of as many rows; all others are
    written in place. On a GPU, index tensors that live there cost a synchronisation: the check needs their
    values.

    Raises ValueError for row numbers out of range, a destination named twice, wrong shapes or dtypes.
    """
    source_NP = x_MP if other_NP is None else other_NP
    _check_matrices(x_MP, source_NP)
    a_rows = row_numbers(a_L, x_MP.shape[0], "a")
    b_rows = row_numbers(b_L, source_NP.shape[0], "b")
    c_rows = a_rows if c_L is None else row_numbers(c_L, x_MP.shape[0], "c")
    if not len(a_rows) == len(b_rows) == len(c_rows):
        raise ValueError(f"a, b and c have {len(a_rows)}, {len(b_rows)} and {len(c_rows)} rows; they need one a pair")
    alphas = pair_alphas(alpha_L, len(a_rows))
    sorted_rows, uses = np.unique(c_rows, return_counts=True)
    if (uses > 1).any():
        raise ValueError(f"row {sorted_rows[uses > 1][0]} is the destination of {uses.max()} pairs; it can be of one")
    if x_MP.shape[1] == 0 or len(a_rows) == 0:
        return

    a_at, b_at, c_at = _addresses(x_MP, a_rows), _addresses(source_NP, b_rows), _addresses(x_MP, c_rows)
    read_elsewhere_L = read_elsewhere(a_at, b_at, c_at)
    delayed_rows = c_rows[read_elsewhere_L]
    delayed_HP = x_MP.new_empty((len(delayed_rows), x_MP.shape[1]))
    if has_triton(x_MP.device):
        from fastwi.kernels.interpolate_triton import launch

        c_at[read_elsewhere_L] = _addresses(delayed_HP, np.arange(len(delayed_rows)))
        launch(a_at, b_at, c_at, np.full_like(a_at, x_MP.shape[1]), alphas, x_MP.dtype, x_MP.device)
    elif len(delayed_rows) or not _lerp_evenly_spaced_(x_MP, source_NP, a_rows, b_rows, c_rows, alphas):
        x_rows, b_views = x_MP.unbind(0), source_NP.unbind(0)
        delayed = dict(zip(delayed_rows.tolist(), delayed_HP.unbind(0), strict=True))
        lerp_views_(
            [x_rows[row] for row in a_rows],
            [b_views[row] for row in b_rows],
            [delayed.get(row, x_rows[row]) for row in c_rows.tolist()],
            alphas.tolist(),
        )
    if len(delayed_rows):
        x_MP.index_copy_(0, torch.from_numpy(delayed_rows).to(x_MP.device), delayed_HP)


@torch.no_grad()
def lerp_views_(
    a_views: Sequence[Tensor], b_views: Sequence[Tensor], c_views: Sequence[Tensor], alphas: Sequence[float]
) -> None:
    """Interpolate pair after pair with torch.lerp; in place where c is a. No c is another pair's a or b."""
    in_place: tuple[list[Tensor], list[Tensor], list[float]] = ([], [], [])
    for a, b, c, alpha in zip(a_views, b_views, c_views, alphas, strict=True):
        if alpha == 0.0:
            if c is not a:
                c.copy_(a)
        elif alpha == 1.0:
            c.copy_(b)
        elif c is a:
            in_place[0].append(a)
            in_place[1].append(b)
            in_place[2].append(alpha)
        else:
            torch.lerp(a, b, alpha, out=c)
    mine, theirs, weights = in_place
    if mine and weights.count(weights[0]) == len(weights):
        torch._foreach_lerp_(mine, theirs, weights[0])
    elif mine:
        torch._foreach_lerp_(mine, theirs, weights)


def row_numbers(rows: Sequence[int] | Tensor, members: int, name: str) -> NDArray[np.int64]:
    """`rows` as a checked vector. Raises ValueError for a number outside 0 ... members - 1."""
    numbers = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a vector of row numbers, not {numbers.dtype} of shape {numbers.shape}")
    outside = numbers[(numbers < 0) | (numbers >= members)]
    if outside.size:
        raise ValueError(f"{name} names row {outside[0]}; there are rows 0 to {members - 1}")
    return numbers.astype(np.int64)


def pair_alphas(alpha: float | Sequence[float] | Tensor, pairs: int) -> NDArray[np.float32]:
    """`alpha` as float32, one a pair. Raises ValueError unless it is finite, and a scalar or that long."""
    alphas = np.asarray(alpha.detach().cpu() if isinstance(alpha, Tensor) else alpha, dtype=np.float32)
    if alphas.ndim > 1 or (alphas.ndim == 1 and len(alphas) != pairs):
        raise ValueError(
            f"alpha has shape {alphas.shape}; it needs to be one number, or one for each of {pairs} pairs"
        )
    if not np.isfinite(alphas).all():
        raise ValueError("alpha must be finite")
    return np.broadcast_to(alphas, (pairs,)).copy()


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether the Triton kernels run on `device`: Triton builds its launcher with a C compiler."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    built = any(shutil.which(compiler) for compiler in compilers if compiler)
    return device.type == "cuda" and built and importlib.util.find_spec("triton") is not None


def _check_matrices(x_MP: Tensor, source_NP: Tensor) -> None:
    """Raise ValueError unless both are matrices of one supported dtype, width and device."""
    for name, matrix in (("x_MP", x_MP), ("other_NP", source_NP)):
        if matrix.ndim != 2 or matrix.dtype not in STORAGE_DTYPES or (matrix.shape[1] > 1 and matrix.stride(1) != 1):
            raise ValueError(
                f"{name} is {matrix.dtype} {tuple(matrix.shape)} with strides {matrix.stride()}; "
                "it must be a float32, bfloat16 or float16 matrix with contiguous rows"
            )
    same = x_MP.dtype == source_NP.dtype and x_MP.device == source_NP.device
    if not same or x_MP.shape[1] != source_NP.shape[1]:
        raise ValueError(
            f"x_MP is {x_MP.dtype} {tuple(x_MP.shape)} on {x_MP.device}, other_NP is {source_NP.dtype} "
            f"{tuple(source_NP.shape)} on {source_NP.device}; they need one dtype, width and device"
        )
    if x_MP.shape[0] > 1 and x_MP.stride(0) < x_MP.shape[1]:
        raise ValueError(f"the rows of x_MP overlap: strides {x_MP.stride()} for shape {tuple(x_MP.shape)}")


def _addresses(matrix: Tensor, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The address in memory of each of `rows`."""
    return matrix.data_ptr() + rows * (matrix.stride(0) * matrix.element_size())


def read_elsewhere(a_at: NDArray[np.int64], b_at: NDArray[np.int64], c_at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each pair, whether another pair reads its destination. Compares addresses: views count too."""
    reads, counts = np.unique(np.concatenate([a_at, b_at]), return_counts=True)
    place = np.minimum(np.searchsorted(reads, c_at), len(reads) - 1)
    all_reads = np.where(reads[place] == c_at, counts[place], 0)
    own_reads = (a_at == c_at).astype(np.int64) + (b_at == c_at)
    return all_reads > own_reads


def _lerp_evenly_spaced_(
    x_MP: Tensor,
    source_NP: Tensor,
    a_rows: NDArray[np.int64],
    b_rows: NDArray[np.int64],
    c_rows: NDArray[np.int64],
    alphas: NDArray[np.float32],
) -> bool:
    """Interpolate in one call where, in some order of the pairs, rows a and rows b are evenly spaced upwards.

    So are (0, 1), (2, 3), (4, 5) ... in any order, or two populations member by member. One torch.lerp over
    strided views was measured 15 to 20 % faster than one a row. It takes alpha in the dtype of the rows, so
    float32 only, and has no exact ends. Returns whether it was done; no destination is another pair's source.
    """
    if len(a_rows) < 2 or x_MP.dtype != torch.float32 or not np.array_equal(a_rows, c_rows):
        return False
    if ((alphas == 0) | (alphas == 1)).any():
        return False
    order = np.argsort(a_rows)
    views = []
    for matrix, rows in ((x_MP, a_rows[order]), (source_NP, b_rows[order])):
        gaps = np.diff(rows)
        if gaps[0] < 1 or (gaps != gaps[0]).any():
            return False
        views.append(matrix[int(rows[0]) : int(rows[-1]) + 1 : int(gaps[0])])
    views[0].lerp_(views[1], torch.from_numpy(alphas[order])[:, None].to(x_MP.device))
    return True
