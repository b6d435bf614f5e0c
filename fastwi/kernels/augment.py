"""Gather, crop, flip and normalise in one pass (paper, Appendix A).

    out[n, c, h, w] = table[c, image[order[n], h + top[n] - padding, w' + left[n] - padding, c]]

with w' = W - 1 - w where flipped, and intensity 0 outside the image: the constant pads the original image, before
normalisation, as torchvision's RandomCrop(padding=p) on an image does. Crop first, then flip.

Shapes: N images of a batch, D images of the dataset, C channels, H height, W width.
"""

import torch
from torch import Tensor

from fastwi.kernels.cpu import library
from fastwi.kernels.interpolate import has_triton

_SUFFIX = {torch.bfloat16: "bf16", torch.float16: "bf16", torch.float32: "fp32"}  # values are copied: size decides


def augment_reference(
    images_DHWC: Tensor,
    order_N: Tensor,
    offset_N2: Tensor | None,
    flip_N: Tensor | None,
    table_C256: Tensor,
    padding: int,
) -> Tensor:
    """[N, C, H, W] in channels-last order and the table's dtype, in torch's own functions, on any device.

    images uint8, order and offsets int64, flips bool. Without offsets nothing is cropped, without flips mirrored.
    """
    N, (H, W, C) = len(order_N), images_DHWC.shape[1:]
    device = images_DHWC.device
    rows_NH = torch.arange(H, device=device).expand(N, H)
    columns_NW = torch.arange(W, device=device).expand(N, W)
    if flip_N is not None:
        columns_NW = torch.where(flip_N[:, None], W - 1 - columns_NW, columns_NW)
    if offset_N2 is not None:
        rows_NH = rows_NH + (offset_N2[:, :1] - padding)
        columns_NW = columns_NW + (offset_N2[:, 1:] - padding)
    inside_NHW = ((rows_NH >= 0) & (rows_NH < H))[:, :, None] & ((columns_NW >= 0) & (columns_NW < W))[:, None]
    at_NHW = (order_N[:, None, None] * H + rows_NH.clamp(0, H - 1)[:, :, None]) * W
    at_NHW = at_NHW + columns_NW.clamp(0, W - 1)[:, None, :]
    pixels_NHWC = images_DHWC.reshape(-1, C)[at_NHW].long() * inside_NHW[..., None]
    channel_C = torch.arange(C, device=device) * 256
    return table_C256.reshape(-1)[pixels_NHWC + channel_C].permute(0, 3, 1, 2)


def augment(
    images_DHWC: Tensor,
    order_N: Tensor,
    offset_N2: Tensor | None,
    flip_N: Tensor | None,
    table_C256: Tensor,
    padding: int,
) -> Tensor:
    """`augment_reference`, by the fused kernel where there is one: equal to the bit, since values are looked up.

    `order_N` must lie in the dataset and offsets in 0 .. 2 * padding; nothing is checked on this hot path.
    """
    N, image_HWC = len(order_N), images_DHWC.shape[1:]
    out_NHWC = torch.empty((N, *image_HWC), dtype=table_C256.dtype, device=images_DHWC.device)
    if has_triton(images_DHWC.device) and images_DHWC.is_contiguous():
        from fastwi.kernels.augment_triton import launch

        offset_1N2 = None if offset_N2 is None else offset_N2[None]
        flip_1N = None if flip_N is None else flip_N[None]
        launch(images_DHWC, order_N[None], offset_1N2, flip_1N, table_C256, padding, None, out_NHWC[None])
    elif not augment_by_library(images_DHWC, order_N, offset_N2, flip_N, table_C256, padding, out_NHWC):
        return augment_reference(images_DHWC, order_N, offset_N2, flip_N, table_C256, padding)
    return out_NHWC.permute(0, 3, 1, 2)


def augment_by_library(
    images_DHWC: Tensor,
    order_N: Tensor,
    offset_N2: Tensor | None,
    flip_N: Tensor | None,
    table_C256: Tensor,
    padding: int,
    out_NHWC: Tensor,
) -> bool:
    """Write to `out_NHWC`, contiguous, by the C++ kernel. False where there is none for these tensors."""
    kernels = library() if images_DHWC.device.type == "cpu" and table_C256.dtype in _SUFFIX else None
    if kernels is None or not images_DHWC.is_contiguous():
        return False
    N, (H, W, C) = len(order_N), images_DHWC.shape[1:]
    order_N, table_C256 = order_N.contiguous(), table_C256.contiguous()
    offset_N2 = None if offset_N2 is None else offset_N2.contiguous()
    flip_N = None if flip_N is None else flip_N.contiguous()
    getattr(kernels, f"augment_{_SUFFIX[table_C256.dtype]}")(
        images_DHWC.data_ptr(), order_N.data_ptr(), None if offset_N2 is None else offset_N2.data_ptr(),
        None if flip_N is None else flip_N.data_ptr(), table_C256.data_ptr(), out_NHWC.data_ptr(),
        N, H, W, C, padding, torch.get_num_threads(),
    )  # fmt: skip
    return True
