"""Interpolate hundreds of pairs of rows or tensors in place.

    c = a + alpha (b - a)          where alpha < 1/2
    c = b - (1 - alpha) (b - a)    elsewhere
    c = a                          where alpha = 0, whatever b holds (infinities and NaN too)
    c = b                          where alpha = 1, whatever a holds

computed in float32 and rounded once to the storage dtype.

On a GPU with Triton: one launch for all pairs, over a table of addresses, so that rows of one matrix and tensors of
separate networks are the same to it. Elsewhere: torch.lerp on views, which runs at the speed of memory.

Symbols: M (and N) rows of P columns, L pairs, T pairs of one launch, G programs of the launch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.kernels import gpu
from fastwi.kernels.gpu import STORAGE_DTYPES, tl, triton

BLOCK = 4096  # elements of a program of the Triton kernel: 16 a thread
WARPS = 8


def interpolate_reference(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """The equation in torch's own functions, in the dtype of `a`.

    a, b: any one shape and floating dtype; alpha: float32, broadcastable to them, any finite value. Computed in
    float32 (float64 for float64 inputs) and rounded once.
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    a_wide, b_wide, weight = a.to(wide), b.to(wide), alpha.to(wide)
    step = b_wide - a_wide
    mixed = torch.where(weight < 0.5, a_wide + weight * step, b_wide - (1 - weight) * step)
    return torch.where(weight == 0, a_wide, torch.where(weight == 1, b_wide, mixed)).to(a.dtype)


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

    x_MP: float32, bfloat16 or float16 [M, P], rows contiguous. a_L, b_L, c_L: row numbers; c defaults to a, and names
    no row twice. alpha_L: finite, one a pair or one for all. Rows b are those of `other_NP` [N, P] where it is given.

    Any pair may read any row: every read sees the values from before the call. A row that another pair reads goes
    through a temporary. On a GPU, index tensors that live there cost a synchronisation.

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
    if gpu.has_triton(x_MP.device):
        c_at[read_elsewhere_L] = _addresses(delayed_HP, np.arange(len(delayed_rows)))
        _launch(a_at, b_at, c_at, np.full_like(a_at, x_MP.shape[1]), alphas, x_MP.dtype, x_MP.device)
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


@torch.no_grad()
def lerp_lists_(
    a_tensors: Sequence[Tensor], b_tensors: Sequence[Tensor], alpha: float | Sequence[float] | Tensor
) -> None:
    """Overwrite each tensor of `a_tensors` with its interpolation with the same place of `b_tensors`.

    What torch._foreach_lerp_ does, for tensors of any shapes. `alpha` is one number, or one a tensor. On a GPU,
    float32, bfloat16 and float16 tensors of equal strides take one launch a dtype and device.

    Raises ValueError where the lists differ in length, shapes, dtypes or devices, hold integers, or where a
    tensor of `a_tensors` is there twice or is read at another place of `b_tensors`.
    """
    kinds_a, kinds_b = ([(x.shape, x.dtype, x.device) for x in tensors] for tensors in (a_tensors, b_tensors))
    if len(kinds_a) != len(kinds_b):
        raise ValueError(f"{len(kinds_a)} tensors a and {len(kinds_b)} tensors b; they come in pairs")
    for place, (mine, theirs) in enumerate(zip(kinds_a, kinds_b, strict=True)):
        if mine != theirs or not mine[1].is_floating_point:
            raise ValueError(
                f"pair {place}: a is {_said(mine)}, b is {_said(theirs)}; they need one floating dtype and shape"
            )
    alphas = pair_alphas(alpha, len(a_tensors))
    a_at = np.array([a.data_ptr() for a in a_tensors], dtype=np.int64)
    b_at = np.array([b.data_ptr() for b in b_tensors], dtype=np.int64)
    filled = np.flatnonzero(a_at)  # tensors without elements are at address 0
    unsafe = read_elsewhere(a_at[filled], b_at[filled], a_at[filled])
    if unsafe.any():
        raise ValueError(
            f"tensor {filled[unsafe][0]} of a is in the lists a second time; each place in memory may be "
            "overwritten once and read by its own pair only"
        )
    if not any(gpu.has_triton(device) for device in {a.device for a in a_tensors}):
        lerp_views_(a_tensors, b_tensors, a_tensors, alphas.tolist())
        return
    fused: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    rest = []
    for place, (a, b) in enumerate(zip(a_tensors, b_tensors, strict=True)):
        dense_alike = a.stride() == b.stride() and (a.is_contiguous() or _is_dense(a))
        if dense_alike and a.dtype in STORAGE_DTYPES and gpu.has_triton(a.device):
            fused.setdefault((a.dtype, a.device), []).append(place)
        else:
            rest.append(place)
    for (dtype, device), places in fused.items():
        elements = np.array([a_tensors[place].numel() for place in places], dtype=np.int64)
        _launch(a_at[places], b_at[places], a_at[places], elements, alphas[places], dtype, device)
    rest_a = [a_tensors[place] for place in rest]
    lerp_views_(rest_a, [b_tensors[place] for place in rest], rest_a, alphas[rest].tolist())


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
    if not len(c_at):
        return np.zeros(0, dtype=bool)
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

    So are (0, 1), (2, 3) ..., or two populations member by member. One torch.lerp over strided views was measured 15
    to 20 % faster than one a row. It takes alpha in the dtype of the rows, so float32 only, and has no exact ends.
    Returns whether it was done; no destination is another pair's source.
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


def _said(kind: tuple[torch.Size, torch.dtype, torch.device]) -> str:
    shape, dtype, device = kind
    return f"{dtype} {tuple(shape)} on {device}"


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's elements fill one stretch of memory, in whatever order."""
    ordered = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    reach = 1
    for stride, size in ordered:
        if stride != reach:
            return False
        reach *= size
    return True


def _launch(
    a_T: NDArray[np.int64],
    b_T: NDArray[np.int64],
    c_T: NDArray[np.int64],
    elements_T: NDArray[np.int64],
    alpha_T: NDArray[np.float32],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Interpolate T pairs given by address: elements_T[t] values at a_T[t] and b_T[t] into c_T[t].

    The caller keeps the memory alive; no destination is read by another pair. Asynchronous on a GPU.
    """
    programs_T = -(-elements_T // BLOCK)
    total = int(programs_T.sum())
    if total == 0:
        return
    task_G = np.repeat(np.arange(len(elements_T), dtype=np.int32), programs_T)
    table_5T = np.stack([a_T, b_T, c_T, elements_T, np.cumsum(programs_T) - programs_T])
    with gpu.on(device):
        interpolate_kernel[(total,)](
            *(torch.from_numpy(x).to(device, non_blocking=True) for x in (table_5T, alpha_T, task_G)),
            len(elements_T),
            ELEMENT=getattr(tl, str(dtype).removeprefix("torch.")),
            ALIGNED=not int(np.bitwise_or.reduce(table_5T[:3].ravel())) % 16,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=True,  # explicit: the default changes between Triton versions
        )


@triton.jit
def _mix(a, b, alpha):  # type: ignore[no-untyped-def]
    """The equation, in float32."""
    step = b - a
    mixed = tl.where(alpha < 0.5, a + alpha * step, b - (1.0 - alpha) * step)
    return tl.where(alpha == 0.0, a, tl.where(alpha == 1.0, b, mixed))


@triton.jit
def interpolate_kernel(  # type: ignore[no-untyped-def]
    table_5T,  # int64: address of a, of b, of c, elements, first program
    alpha_T,  # float32
    task_G,  # int32: the pair of each program
    tasks,
    ELEMENT: tl.constexpr,
    ALIGNED: tl.constexpr,  # every address is a multiple of 16 bytes
    BLOCK: tl.constexpr,
):
    """One block of one pair. All of a and b that it reads is read before it writes."""
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
