"""The Triton kernel that gathers, crops, flips and normalises the batches of many networks in one launch.

    out[m, n, h, w, c] = table[c, image[order[m, i], h + top[m, i] - padding, w' + left[m, i] - padding, c]]

with i = first + n, w' = W - 1 - w where flipped, and intensity 0 outside the image (see `augment`). `first` is read
from the device, so that one captured launch serves every step of an epoch.

A program looks up consecutive values of one flat image H * W * C, which makes its stores coalesced whatever C is.
Images and table are read a byte and a value at a time; neighbours' reads hit the cache.

Shapes: M members, S draws of each, N images of each in the batch, D images of the dataset, H height, W width, C
channels.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_VALUES = 1024  # of a program: 8 a thread, 16 bytes in bf16
WARPS = 4


@triton.jit
def augment_kernel(  # type: ignore[no-untyped-def]
    images_DHWC,  # uint8
    order_MS,  # int64
    offset_MS2,  # int64, or None: nothing is cropped
    flip_MS,  # uint8, or None: nothing is flipped
    table_C256,
    first,  # int64 [1], or None: 0
    out_MNHWC,  # of the table's dtype
    labels_D,  # int64, or None
    labels_MN,  # int64: labels_D of the images taken; or None
    S,
    N,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one image. Places are int64: datasets and populations pass 2^31 values."""
    SIZE: tl.constexpr = H * W * C
    CHUNKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    image = tl.program_id(0) // CHUNKS  # m * N + n
    chunk = tl.program_id(0) % CHUNKS
    member = image // N
    at = member.to(tl.int64) * S + (image - member * N)
    if first is not None:
        at += tl.load(first)
    source = tl.load(order_MS + at)
    if labels_MN is not None:
        tl.store(labels_MN + image, tl.load(labels_D + source), mask=chunk == 0)

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


def launch(
    images_DHWC: Tensor,
    order_MS: Tensor,
    offset_MS2: Tensor | None,
    flip_MS: Tensor | None,
    table_C256: Tensor,
    padding: int,
    first: Tensor | None,
    out_MNHWC: Tensor,
    labels_D: Tensor | None = None,
    labels_MN: Tensor | None = None,
) -> None:
    """Augment N images a member into `out_MNHWC`, contiguous as `images_DHWC` and `labels_MN` must be.

    Dtypes as the kernel says, flips bool. One launch; asynchronous on a GPU.
    """
    M, N, H, W, C = out_MNHWC.shape
    if out_MNHWC.numel() == 0:
        return
    block = min(MOST_VALUES, triton.next_power_of_2(H * W * C))
    on_gpu = images_DHWC.device.type == "cuda"
    with torch.cuda.device(images_DHWC.device) if on_gpu else contextlib.nullcontext():
        augment_kernel[(M * N * triton.cdiv(H * W * C, block),)](
            images_DHWC,
            order_MS.contiguous(),
            None if offset_MS2 is None else offset_MS2.contiguous(),
            None if flip_MS is None else flip_MS.contiguous().view(torch.uint8),
            table_C256.contiguous(),
            first,
            out_MNHWC,
            None if labels_D is None else labels_D.contiguous(),
            labels_MN,
            order_MS.shape[1],
            N,
            H=H,
            W=W,
            C=C,
            PADDING=padding,
            BLOCK=block,
            num_warps=WARPS,
        )
