"""Interpolate lists of tensors in place: those of separate networks, of any shapes.

The equation is that of `fastwi.kernels.interpolate`. What torch._foreach_lerp_ does, but checked first, and
on a GPU with Triton in one launch over a table of addresses.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.kernels.interpolate import STORAGE_DTYPES, has_triton, lerp_views_, pair_alphas, read_elsewhere


@torch.no_grad()
def lerp_lists_(
    a_tensors: Sequence[Tensor], b_tensors: Sequence[Tensor], alpha: float | Sequence[float] | Tensor
) -> None:
    """Overwrite each tensor of `a_tensors` with its interpolation with the same place of `b_tensors`.

    What torch._foreach_lerp_ does, for tensors of any shapes: those of separate networks, say. `alpha` is one
    number, or one a tensor. On a GPU, float32, bfloat16 and float16 tensors of equal strides take one launch
    a dtype and device, however many they are; all others go to torch._foreach_lerp_, as everything does on a
    CPU.

    Raises ValueError where the lists differ in length, shapes, dtypes or devices, hold integers, or where a
    tensor of `a_tensors` is there twice or is read at another place of `b_tensors`.
    """
    _check_lists(a_tensors, b_tensors)
    alphas = pair_alphas(alpha, len(a_tensors))
    a_at = np.array([a.data_ptr() for a in a_tensors], dtype=np.int64)
    b_at = np.array([b.data_ptr() for b in b_tensors], dtype=np.int64)
    _refuse_shared(a_at, b_at)
    if not any(has_triton(device) for device in {a.device for a in a_tensors}):
        lerp_views_(a_tensors, b_tensors, a_tensors, alphas.tolist())
        return
    fused: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    rest = []
    for place, (a, b) in enumerate(zip(a_tensors, b_tensors, strict=True)):
        dense_alike = a.stride() == b.stride() and (a.is_contiguous() or _is_dense(a))
        if dense_alike and a.dtype in STORAGE_DTYPES and has_triton(a.device):
            fused.setdefault((a.dtype, a.device), []).append(place)
        else:
            rest.append(place)
    for (dtype, device), places in fused.items():
        from fastwi.kernels.interpolate_triton import launch

        elements = np.array([a_tensors[place].numel() for place in places], dtype=np.int64)
        launch(a_at[places], b_at[places], a_at[places], elements, alphas[places], dtype, device)
    rest_a = [a_tensors[place] for place in rest]
    lerp_views_(rest_a, [b_tensors[place] for place in rest], rest_a, alphas[rest].tolist())


def _check_lists(a_tensors: Sequence[Tensor], b_tensors: Sequence[Tensor]) -> None:
    """Raise ValueError unless the lists match, place by place, in floating dtypes, shapes and devices.

    Compares whole lists first: with many small tensors, looking at each in turn costs more than the work.
    """
    if len(a_tensors) != len(b_tensors):
        raise ValueError(f"{len(a_tensors)} tensors a and {len(b_tensors)} tensors b; they come in pairs")
    dtypes = [a.dtype for a in a_tensors]
    if (
        [a.shape for a in a_tensors] == [b.shape for b in b_tensors]
        and dtypes == [b.dtype for b in b_tensors]
        and [a.device for a in a_tensors] == [b.device for b in b_tensors]
        and all(dtype.is_floating_point for dtype in set(dtypes))
    ):
        return
    for place, (a, b) in enumerate(zip(a_tensors, b_tensors, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or not a.is_floating_point():
            raise ValueError(
                f"pair {place}: a is {a.dtype} {tuple(a.shape)} on {a.device}, "
                f"b is {b.dtype} {tuple(b.shape)} on {b.device}; "
                "they need one floating dtype, shape and device"
            )


def _refuse_shared(a_at: NDArray[np.int64], b_at: NDArray[np.int64]) -> None:
    """Raise ValueError where a destination is there twice, or is the source of another pair."""
    filled = np.flatnonzero(a_at)  # tensors without elements are at address 0
    if not len(filled):
        return
    unsafe = read_elsewhere(a_at[filled], b_at[filled], a_at[filled])
    if unsafe.any():
        raise ValueError(
            f"tensor {filled[unsafe][0]} of a is in the lists a second time; each place in memory may be "
            "overwritten once and read by its own pair only"
        )


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's elements fill one stretch of memory, in whatever order."""
    ordered = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    reach = 1
    for stride, size in ordered:
        if stride != reach:
            return False
        reach *= size
    return True
