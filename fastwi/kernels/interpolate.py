"""Interpolate hundreds of pairs of rows or tensors in place.

    c = a + alpha (b - a)          where |alpha| < 1/2
    c = b - (1 - alpha) (b - a)    elsewhere
    c = a                          where alpha = 0, whatever b holds (infinities and NaN too)
    c = b                          where alpha = 1, whatever a holds

computed in float32 (float64 for lists of such tensors) and rounded once to the storage dtype.

Rows on a GPU with Triton: one launch for all pairs, over a table of addresses. Elsewhere, and for lists of tensors:
torch's lerp, which runs at the speed of memory. Checks and the table take the host as long as the launch takes a GPU,
so pairs that come again are planned once (`RowInterpolation`).

Symbols: M (and N) rows of P columns, L pairs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.kernels import gpu
from fastwi.kernels.combine import require_alike, row_addresses
from fastwi.kernels.gpu import STORAGE_DTYPES, row_pointer, tl, triton

BLOCK = 2048  # elements of a program of the Triton kernel: 8 a thread
WARPS = 8


class RowInterpolation:
    """Pairs of rows that are interpolated once or many times: checked and planned here, done by each call.

    A call overwrites rows a of `x_MP` with their interpolations with rows b, all as they are then. Any pair may read
    any row: every read sees the values from before the call.

    x_MP: float32, bfloat16 or float16 [M, P], rows contiguous. a_L, b_L: row numbers; a names no row twice. alpha_L:
    finite, one a pair or one for all. Rows b are those of `other_NP` [N, P] where it is given.

    Holds both matrices; on a GPU also the table of addresses, and memory for each row that is written while another
    pair reads it, for the stream that it was made on.

    Raises ValueError for row numbers out of range, a destination named twice, rows of x that overlap in memory, wrong
    shapes, dtypes or alphas; and in a call where a matrix lies elsewhere in memory than when it was planned.
    """

    @torch.no_grad()
    def __init__(
        self,
        x_MP: Tensor,
        a_L: Sequence[int] | Tensor,
        b_L: Sequence[int] | Tensor,
        alpha_L: float | Sequence[float] | Tensor,
        other_NP: Tensor | None = None,
    ) -> None:
        source_NP = x_MP if other_NP is None else other_NP
        require_alike([x_MP, source_NP])
        if x_MP.dtype not in STORAGE_DTYPES:
            raise ValueError(f"rows are {x_MP.dtype}; they must be float32, bfloat16 or float16")
        if len(x_MP) > 1 and x_MP.stride(0) < x_MP.shape[1]:
            raise ValueError(
                f"rows of {x_MP.shape[1]} values with stride {x_MP.stride(0)} overlap; give a copy (clone)"
            )
        a_rows = row_numbers(a_L, len(x_MP), "a")
        b_rows = row_numbers(b_L, len(source_NP), "b")
        if len(a_rows) != len(b_rows):
            raise ValueError(f"a and b have {len(a_rows)} and {len(b_rows)} rows; they need one a pair")
        alphas = pair_alphas(alpha_L, len(a_rows))
        uses = np.bincount(a_rows)
        if (uses > 1).any():
            raise ValueError(f"row {uses.argmax()} is the destination of {uses.max()} pairs; it can be of one")
        self._x_MP, self._source_NP = x_MP, source_NP
        self._places = _place(x_MP), _place(source_NP)
        self._settle: Callable[[], object] = lambda: None
        self._interpolate: Callable[[], object] = lambda: None
        if x_MP.shape[1] and len(a_rows):
            self._plan(a_rows, b_rows, alphas)

    def _plan(self, a_rows: NDArray[np.int64], b_rows: NDArray[np.int64], alphas: NDArray[np.float32]) -> None:
        """Say what a call does: first to rows and, in place of those that others read, to memory of its own."""
        x_MP, source_NP = self._x_MP, self._source_NP
        a_at, b_at = row_addresses(x_MP, a_rows), row_addresses(source_NP, b_rows)
        read_elsewhere_L = read_elsewhere(a_at, b_at)
        delayed_rows = a_rows[read_elsewhere_L]
        delayed_HP = x_MP.new_empty((len(delayed_rows), x_MP.shape[1]))
        if len(delayed_rows):
            places = torch.from_numpy(delayed_rows).to(x_MP.device)
            self._settle = lambda: x_MP.index_copy_(0, places, delayed_HP)
        if gpu.has_triton(x_MP.device):
            c_at = a_at.copy()
            c_at[read_elsewhere_L] = row_addresses(delayed_HP, np.arange(len(delayed_rows)))
            self._interpolate = _launch(np.stack([a_at, b_at, c_at]), alphas, x_MP)
            return
        evenly = None if len(delayed_rows) else _evenly_spaced(x_MP, source_NP, a_rows, b_rows, alphas)
        if evenly is not None:
            a_rows_view, b_rows_view, weights = evenly
            self._interpolate = lambda: a_rows_view.lerp_(b_rows_view, weights)
            return
        x_rows, b_views = x_MP.unbind(0), source_NP.unbind(0)
        delayed = dict(zip(delayed_rows.tolist(), delayed_HP.unbind(0), strict=True))
        views = (
            [x_rows[row] for row in a_rows],
            [b_views[row] for row in b_rows],
            [delayed.get(row, x_rows[row]) for row in a_rows.tolist()],
        )
        self._interpolate = functools.partial(lerp_views_, *views, alphas.tolist())

    @torch.no_grad()
    def __call__(self) -> None:
        """Interpolate all pairs. Asynchronous on a GPU."""
        if (_place(self._x_MP), _place(self._source_NP)) != self._places:
            raise ValueError("a matrix lies elsewhere in memory than when its pairs were planned; plan them again")
        self._interpolate()
        self._settle()


def _place(matrix: Tensor) -> tuple[object, ...]:
    """Where in memory a matrix is."""
    return matrix.data_ptr(), matrix.shape, matrix.stride()


@torch.no_grad()
def lerp_lists_(
    a_tensors: Sequence[Tensor], b_tensors: Sequence[Tensor], alpha: float | Sequence[float] | Tensor
) -> None:
    """Overwrite each tensor of `a_tensors` with its interpolation with the same place of `b_tensors`.

    The two tensors of a place have one shape, floating dtype and device. `alpha` is one number, or one a tensor.
    Raises ValueError, with nothing written, where that is not so, where the lists differ in length, where alpha is
    not finite, and where one pair would overwrite what another pair reads.
    """
    if len(a_tensors) != len(b_tensors):
        raise ValueError(f"{len(a_tensors)} tensors a and {len(b_tensors)} tensors b; they come in pairs")
    for place, (a, b) in enumerate(zip(a_tensors, b_tensors, strict=True)):
        kind_a, kind_b = (a.shape, a.dtype, a.device), (b.shape, b.dtype, b.device)
        if kind_a != kind_b or not a.is_floating_point():
            raise ValueError(
                f"pair {place}: a is {a.dtype} {tuple(a.shape)} on {a.device}, b is {b.dtype} {tuple(b.shape)} on "
                f"{b.device}; they need one shape, floating dtype and device"
            )
    alphas = pair_alphas(alpha, len(a_tensors), np.float64)  # not rounded: tensors may be float64
    a_at, b_at = (np.array([x.data_ptr() for x in tensors], dtype=np.int64) for tensors in (a_tensors, b_tensors))
    filled = np.flatnonzero(a_at)  # tensors without elements are at address 0
    unsafe = read_elsewhere(a_at[filled], b_at[filled])
    if unsafe.any():
        raise ValueError(
            f"tensor {filled[unsafe][0]} of a is in the lists a second time; each place in memory may be "
            "overwritten once and read by its own pair only"
        )
    lerp_views_(a_tensors, b_tensors, a_tensors, alphas.tolist())


def lerp_views_(
    a_views: Sequence[Tensor], b_views: Sequence[Tensor], c_views: Sequence[Tensor], alphas: Sequence[float]
) -> None:
    """Interpolate pair after pair with torch.lerp; in place where c is a. No c is another pair's a or b."""
    copies: list[tuple[Tensor, Tensor]] = []
    in_place: list[tuple[Tensor, Tensor, float]] = []
    for a, b, c, alpha in zip(a_views, b_views, c_views, alphas, strict=True):
        if alpha in (0.0, 1.0):
            end = b if alpha else a
            if end is not c:
                copies.append((c, end))
        elif c is a:
            in_place.append((a, b, alpha))
        else:
            torch.lerp(a, b, alpha, out=c)
    if copies:
        torch._foreach_copy_([c for c, _ in copies], [end for _, end in copies])
    if in_place:
        mine, theirs, weights = map(list, zip(*in_place, strict=True))
        same = weights.count(weights[0]) == len(weights)
        torch._foreach_lerp_(mine, theirs, weights[0] if same else weights)


def row_numbers(rows: Sequence[int] | Tensor, members: int, name: str) -> NDArray[np.int64]:
    """`rows` as a checked vector. Raises ValueError for a number outside 0 ... members - 1."""
    numbers = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a vector of row numbers, not {numbers.dtype} of shape {numbers.shape}")
    outside = numbers[(numbers < 0) | (numbers >= members)]
    if outside.size:
        raise ValueError(f"{name} names row {outside[0]}; there are rows 0 to {members - 1}")
    return numbers.astype(np.int64)


def pair_alphas(
    alpha: float | Sequence[float] | Tensor, pairs: int, dtype: type[np.floating[Any]] = np.float32
) -> NDArray[Any]:
    """`alpha` in `dtype`, one a pair. Raises ValueError unless it is finite in float32, and a scalar or that long."""
    alphas = np.asarray(alpha.detach().cpu() if isinstance(alpha, Tensor) else alpha, dtype=dtype)
    if alphas.shape not in ((), (pairs,)):
        raise ValueError(
            f"alpha has shape {alphas.shape}; it needs to be one number, or one for each of {pairs} pairs"
        )
    if not (np.abs(alphas) <= np.finfo(np.float32).max).all():
        raise ValueError("alpha must be finite")
    return np.broadcast_to(alphas, (pairs,)).copy()


def read_elsewhere(a_at: NDArray[np.int64], b_at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each pair, whether another pair reads its a. Compares addresses: views count too."""
    reads, counts = np.unique(np.concatenate([a_at, b_at]), return_counts=True)
    return counts[np.searchsorted(reads, a_at)] > 1 + (a_at == b_at)


def _evenly_spaced(
    x_MP: Tensor,
    source_NP: Tensor,
    a_rows: NDArray[np.int64],
    b_rows: NDArray[np.int64],
    alphas: NDArray[np.float32],
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows a, rows b and alphas for one call of lerp, if the rows are evenly spaced upwards in some order.

    It was measured 15 to 20 % faster than one call a row. For float32, alphas but 0 and 1, and no delayed row.
    """
    inside = not ((alphas == 0) | (alphas == 1)).any()
    if len(a_rows) < 2 or x_MP.dtype != torch.float32 or not inside:
        return None
    order = np.argsort(a_rows)
    views = []
    for matrix, rows in ((x_MP, a_rows[order]), (source_NP, b_rows[order])):
        gaps = np.diff(rows)
        if gaps[0] < 1 or (gaps != gaps[0]).any():
            return None
        views.append(matrix[int(rows[0]) : int(rows[-1]) + 1 : int(gaps[0])])
    return views[0], views[1], torch.from_numpy(alphas[order])[:, None].to(x_MP.device)


def _launch(table_3L: NDArray[np.int64], alpha_L: NDArray[np.float32], x_MP: Tensor) -> Callable[[], None]:
    """Interpolates L pairs of rows like x's, given by the addresses of a, b and c. Asynchronous on a GPU."""
    L, P, device = len(alpha_L), x_MP.shape[1], x_MP.device
    blocks = triton.cdiv(P, BLOCK)
    table, alphas = (torch.from_numpy(x).to(device, non_blocking=True) for x in (table_3L, alpha_L))
    element = getattr(tl, str(x_MP.dtype).removeprefix("torch."))
    aligned = not int(np.bitwise_or.reduce(table_3L.ravel())) % 16

    def launch() -> None:
        with gpu.on(device):
            interpolate_kernel[(L * blocks,)](
                table, alphas, L, P, blocks, ELEMENT=element, ALIGNED=aligned, BLOCK=BLOCK, num_warps=WARPS,
                enable_fp_fusion=True,  # explicit: the default changes between Triton versions
            )  # fmt: skip

    return launch


@triton.jit
def _interpolate(a_row, b_row, c_row, columns, mask, alpha, ELEMENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The equation on `columns`, in float32. Without a mask all of them are there."""
    a = tl.load(a_row + columns, mask=mask).to(tl.float32)
    b = tl.load(b_row + columns, mask=mask).to(tl.float32)
    step = b - a
    mixed = tl.where(tl.abs(alpha) < 0.5, a + alpha * step, b - (1.0 - alpha) * step)
    c = tl.where(alpha == 0.0, a, tl.where(alpha == 1.0, b, mixed))
    tl.store(c_row + columns, c.to(ELEMENT), mask=mask)


@triton.jit
def interpolate_kernel(  # type: ignore[no-untyped-def]
    table_3L,  # int64: address of a, of b, of c
    alpha_L,  # float32
    L,
    P,
    blocks,  # of a row
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,  # every address is a multiple of 16 bytes
    BLOCK: tl.constexpr,
):
    """One block of one pair. All of a and b that it reads is read before it writes."""
    program = tl.program_id(0)
    pair = program // blocks
    a_row = row_pointer(table_3L + pair, ELEMENT, ALIGNED)
    b_row = row_pointer(table_3L + L + pair, ELEMENT, ALIGNED)
    c_row = row_pointer(table_3L + 2 * L + pair, ELEMENT, ALIGNED)
    alpha = tl.load(alpha_L + pair)
    start = (program - pair * blocks).to(tl.int64) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    if start + BLOCK <= P:  # a mask, even of all ones, would split the 16-byte accesses
        _interpolate(a_row, b_row, c_row, columns, None, alpha, ELEMENT)
    else:
        _interpolate(a_row, b_row, c_row, columns, columns < P, alpha, ELEMENT)
