"""Gather, crop, flip and normalise in one pass (paper, Appendix A), for many networks at once.

    out[m, n, h, w, c] = table[c, image[order[m, i], h + top[m, i] - padding, w' + left[m, i] - padding, c]]

with i = first + n, w' = W - 1 - w where flipped, and intensity 0 outside the image, as torchvision's
RandomCrop(padding=p) on an image does. Crop first, then flip. Values are looked up: every path gives the same bits.

Shapes: M members, S draws of each (an epoch), N images of each in the batch, D images of the dataset, C channels, H
height, W width.
"""

import torch
from torch import Tensor

from fastwi.kernels import gpu
from fastwi.kernels.cpu import call, library
from fastwi.kernels.gpu import tl, triton

_SUFFIX = {torch.bfloat16: "bf16", torch.float16: "bf16", torch.float32: "fp32"}  # values are copied: size decides
MOST_VALUES = 1024  # of a program of the Triton kernel: 8 a thread, 16 bytes in bf16
WARPS = 4


def augment_reference(
    images_DHWC: Tensor,
    order_N: Tensor,
    offset_N2: Tensor | None,
    flip_N: Tensor | None,
    table_C256: Tensor,
    padding: int,
) -> Tensor:
    """`augment` in torch's own functions, in any dtype of the table, on any device."""
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
    """The batch of one network: [N, C, H, W] in channels-last order and the table's dtype. See `augment_many`."""
    offset, flip = (None if draws is None else draws[None] for draws in (offset_N2, flip_N))
    x_1NHWC = augment_many(images_DHWC, order_N[None], offset, flip, table_C256, padding, None, len(order_N))
    return x_1NHWC[0].permute(0, 3, 1, 2)


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
) -> Tensor:
    """Draws first ... first + count - 1 of every member: [M, N, H, W, C] in the table's dtype, N = count.

    images uint8; order and offsets int64, flips bool; `first` int64 [1] on the device, or None for 0. Without offsets
    nothing is cropped, without flips nothing is flipped. Nothing is checked, and nothing waits for the device.
    """
    M, (H, W, C) = len(order_MS), images_DHWC.shape[1:]
    if gpu.has_triton(images_DHWC.device) and images_DHWC.is_contiguous():
        out_MNHWC = table_C256.new_empty((M, count, H, W, C))
        if out_MNHWC.numel():
            block = min(MOST_VALUES, triton.next_power_of_2(H * W * C))
            with gpu.on(images_DHWC.device):
                augment_kernel[(M * count * triton.cdiv(H * W * C, block),)](
                    images_DHWC, order_MS.contiguous(), None if offset_MS2 is None else offset_MS2.contiguous(),
                    None if flip_MS is None else flip_MS.contiguous().view(torch.uint8), table_C256.contiguous(),
                    first, out_MNHWC, order_MS.shape[1], count, H, W, C, padding, block, num_warps=WARPS,
                )  # fmt: skip
        return out_MNHWC

    def chosen(draws_MS: Tensor) -> Tensor:
        if first is None:
            return draws_MS[:, :count].flatten(0, 1)
        return draws_MS.index_select(1, first + torch.arange(count, device=first.device)).flatten(0, 1)

    order_N, table_C256 = chosen(order_MS).contiguous(), table_C256.contiguous()
    offset_N2 = None if offset_MS2 is None else chosen(offset_MS2).contiguous()
    flip_N = None if flip_MS is None else chosen(flip_MS).contiguous()
    by_library = images_DHWC.device.type == "cpu" and table_C256.dtype in _SUFFIX and images_DHWC.is_contiguous()
    if by_library and library() is not None:
        out_NHWC = table_C256.new_empty((M * count, H, W, C))
        call(
            f"augment_{_SUFFIX[table_C256.dtype]}", images_DHWC, order_N, offset_N2, flip_N, table_C256, out_NHWC,
            M * count, H, W, C, padding,
        )  # fmt: skip
    else:
        x_NCHW = augment_reference(images_DHWC, order_N, offset_N2, flip_N, table_C256, padding)
        out_NHWC = x_NCHW.permute(0, 2, 3, 1)
    return out_NHWC.view(M, count, H, W, C)


@triton.jit
def augment_kernel(  # type: ignore[no-untyped-def]
    images_DHWC,  # uint8
    order_MS,  # int64
    offset_MS2,  # int64, or None: nothing is cropped
    flip_MS,  # uint8, or None: nothing is flipped
    table_C256,
    first,  # int64 [1], or None: 0
    out_MNHWC,  # of the table's dtype
    S,
    N,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program looks up consecutive values of one flat image, which makes its stores coalesced whatever C is.

    Places are int64: datasets and populations pass 2^31 values.
    """
    SIZE: tl.constexpr = H * W * C
    CHUNKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    image = tl.program_id(0) // CHUNKS  # m * N + n
    chunk = tl.program_id(0) % CHUNKS
    member = image // N
    at = member.to(tl.int64) * S + (image - member * N)
    if first is not None:
        at += tl.load(first)
    source = tl.load(order_MS + at)
    value = chunk * BLOCK + tl.arange(0, BLOCK)
    pixel = value // C
    channel = value % C
    row = pixel // W
    column = pixel % W
    if flip_MS is not None:
        column = tl.where(tl.load(flip_MS + at) != 0, W - 1 - column, column)
    if offset_MS2 is not None:
        row += (tl.load(offset_MS2 + 2 * at) - PADDING).to(tl.int32)
        column += (tl.load(offset_MS2 + 2 * at + 1) - PADDING).to(tl.int32)
    inside = (value < SIZE) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    place = (row * W + column) * C + channel
    intensity = tl.load(images_DHWC + source * SIZE + place, mask=inside, other=0)
    normalised = tl.load(table_C256 + channel * 256 + intensity.to(tl.int32))
    tl.store(out_MNHWC + image.to(tl.int64) * SIZE + value, normalised, mask=value < SIZE)
