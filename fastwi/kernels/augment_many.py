"""`augment` for many networks at once, each with its own draws, at a place in the epoch that lives on the device.

    out[m, n] = augment(images, order[m, i], offset[m, i], flip[m, i])    with i = first + n

Nothing here waits for a GPU or depends on a Python number that changes from step to step, so a captured CUDA graph
that adds `count` to `first` walks through an epoch. 3 bytes move a value in bf16: about 9 KB an image of CIFAR-10.

Shapes: M members, S draws of each (an epoch), N images of each in the batch, D images of the dataset, C channels, H
height, W width.
"""

import torch
from torch import Tensor

from fastwi.kernels.augment import augment_by_library, augment_reference
from fastwi.kernels.interpolate import has_triton


def augment_many_reference(
    images_DHWC: Tensor,
    order_MS: Tensor,
    offset_MS2: Tensor | None,
    flip_MS: Tensor | None,
    table_C256: Tensor,
    padding: int,
    first: Tensor | None,
    count: int,
) -> Tensor:
    """[M, N, H, W, C] in the table's dtype, N = `count`, in torch's own functions, on any device."""
    draws = _batch(order_MS, offset_MS2, flip_MS, first, count)
    x_NCHW = augment_reference(images_DHWC, *draws, table_C256, padding)
    return x_NCHW.permute(0, 2, 3, 1).unflatten(0, (len(order_MS), count))


@torch.no_grad()
def augment_many(
    images_DHWC: Tensor,
    order_MS: Tensor,
    offset_MS2: Tensor | None,
    flip_MS: Tensor | None,
    table_C256: Tensor,
    padding: int,
    first: Tensor | None,
    count: int,
    out_MNHWC: Tensor | None = None,
    labels_D: Tensor | None = None,
    labels_MN: Tensor | None = None,
) -> Tensor:
    """Gather, crop, flip and normalise draws first ... first + count - 1 of every member; [M, N, H, W, C], N = count.

    images uint8; order and offsets int64, flips bool; table bfloat16, float16 or float32, which is the dtype of the
    result. Without offsets nothing is cropped, without flips mirrored. `first` is an int64 tensor [1], or None for 0.
    The result is written to `out_MNHWC` where it is given. Given int64 `labels_D` and `labels_MN`, `labels_MN` is
    overwritten with the labels of the images taken. All tensors are on the images' device.

    Equal to `augment_many_reference` to the bit on every device, and a member's images to `augment` of its draws.
    Neither `first` nor orders and offsets are checked, which would wait for the device: first + count must not exceed
    S, orders must lie in the dataset, offsets in 0 .. 2 * padding.

    Raises ValueError for wrong shapes, dtypes or devices, and for outputs that are not contiguous.
    """
    (M, S), (D, *image_HWC) = order_MS.shape, images_DHWC.shape
    dtype, shape_MNHWC = table_C256.dtype, (M, count, *image_HWC)
    if (labels_D is None) != (labels_MN is None):
        raise ValueError("labels_D and labels_MN are needed together, or neither")
    if not 0 <= count <= S:
        raise ValueError(f"count is {count}; it needs to be 0 to {S}, the draws of each member in order_MS")
    device = images_DHWC.device
    _check("images_DHWC", images_DHWC, torch.uint8, (D, *image_HWC), device)
    _check("order_MS", order_MS, torch.int64, (M, S), device)
    _check("offset_MS2", offset_MS2, torch.int64, (M, S, 2), device)
    _check("flip_MS", flip_MS, torch.bool, (M, S), device)
    _check("table_C256", table_C256, dtype, (image_HWC[-1], 256), device)
    _check("first", first, torch.int64, (1,), device)
    _check("labels_D", labels_D, torch.int64, (D,), device)
    _check("labels_MN", labels_MN, torch.int64, (M, count), device, written=True)
    _check("out_MNHWC", out_MNHWC, dtype, shape_MNHWC, device, written=True)

    out = torch.empty(shape_MNHWC, dtype=dtype, device=device) if out_MNHWC is None else out_MNHWC
    if has_triton(device) and images_DHWC.is_contiguous():
        from fastwi.kernels.augment_triton import launch

        launch(images_DHWC, order_MS, offset_MS2, flip_MS, table_C256, padding, first, out, labels_D, labels_MN)
        return out
    order_N, offset_N2, flip_N = _batch(order_MS, offset_MS2, flip_MS, first, count)
    if labels_D is not None and labels_MN is not None:
        labels_MN.copy_(labels_D[order_N].view(M, count))
    if not augment_by_library(images_DHWC, order_N, offset_N2, flip_N, table_C256, padding, out.flatten(0, 1)):
        x_NCHW = augment_reference(images_DHWC, order_N, offset_N2, flip_N, table_C256, padding)
        out.copy_(x_NCHW.permute(0, 2, 3, 1).view_as(out))
    return out


def _batch(
    order_MS: Tensor, offset_MS2: Tensor | None, flip_MS: Tensor | None, first: Tensor | None, count: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Draws first ... first + count - 1 of every member, all members' in one row; the host does not learn where."""
    at_N = torch.arange(count, device=order_MS.device)
    if first is not None:
        at_N += first
    offset_N2 = None if offset_MS2 is None else offset_MS2.index_select(1, at_N).flatten(0, 1)
    flip_N = None if flip_MS is None else flip_MS.index_select(1, at_N).flatten(0, 1)
    return order_MS.index_select(1, at_N).flatten(0, 1), offset_N2, flip_N


def _check(
    name: str,
    tensor: Tensor | None,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device,
    written: bool = False,
) -> None:
    """Raise ValueError unless `tensor` is absent or as it should be."""
    if tensor is None:
        return
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; "
            f"it needs to be {dtype} {shape} on {device}"
        )
    if written and not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; it needs to be contiguous")
