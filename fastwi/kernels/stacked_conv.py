"""Convolutions of M networks at once and their gradients, as implicit matrix products.

    y[m, n, p, q, o]     = sum over kh, kw, i of a[m, n, p s + kh - pad, q s + kw - pad, i] w[m, o, kh, kw, i]
    dx[m, n, h, w, i]    = sum over kh, kw, o of dy[m, n, p, q, o] w[m, o, kh, kw, i],   p s + kh - pad = h, q alike
    dw[m, o, kh, kw, i]  = sum over n, p, q of a[m, n, p s + kh - pad, q s + kw - pad, i] dy[m, n, p, q, o]

a is x, or with batch norm and ReLU in the prologue act(x scale[m, i] + shift[m, i]), and 0 outside the image either
way. Sums are in float32; inputs are rounded to the activations' dtype first, as a product of that dtype does.

A member may have 2^31 values or more: a program counts rows and values from its own first image, in 32 bits.

By Triton on a GPU. Elsewhere by torch, member by member (sums in float64 for float64 inputs). Every program owns its
outputs and sizes follow from a member's own shapes: results are the same each time, whatever other members are.

Memory traffic in bytes a value of y in bf16: forward and gradients 4 each; input gradient 6 with the prologue's
backward; weight gradient 8 K / CHUNK more for partial sums. Taps of a 3 x 3 kernel read x nine times, from caches.

Symbols: those of fastwi.kernels.stacked_geometry. C channels, T tiles. stats_M4C: mean, inv, scale and shift.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from fastwi.kernels import gpu, stacked_norm
from fastwi.kernels.gpu import INTERPRETED, rounded, row_alignment, tl, triton
from fastwi.kernels.stacked_geometry import Geometry, Tile, chunk_rows, product_tile, weight_tile
from fastwi.kernels.stacked_norm import (
    SCALE,
    SHIFT,
    normed,
    standardised,
    store_gradient_sums,
    store_moments,
    wide,
)


def _by_member(function: Callable[..., Tensor], *stacks: Tensor) -> Tensor:
    """`function` of each member's tensors, stacked.

    On a GPU float32 is float32, and the same each time: cuDNN's convolutions are in TF32 otherwise.
    """
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with exact if stacks[0].device.type == "cuda" else contextlib.nullcontext():
        return torch.stack([function(*own) for own in zip(*stacks, strict=True)])


def _launch(kernel: Any, grid: tuple[int, int, int], tile: Tile, device: torch.device, *arguments: Any) -> None:
    """Launch `kernel` on `device`, with the tile's rows, columns and depth as its last arguments."""
    with gpu.on(device):
        kernel[grid](
            *arguments, tile.rows, tile.columns, tile.depth,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        )  # fmt: skip


def _operands(weight_MOHWI: Tensor, x: Tensor) -> Tensor:
    """The weights [M, O, I, H, W], rounded to x's dtype, in the dtype to compute in.

    Not in bf16 itself: on a CPU without instructions for it torch rounds every partial sum.
    """
    return weight_MOHWI.to(x.dtype).to(wide(x)).permute(0, 1, 4, 2, 3)


def _images(x_NHWC: Tensor) -> Tensor:
    """[N, C, H, W] in the dtype to compute in."""
    return x_NHWC.to(wide(x_NHWC)).permute(0, 3, 1, 2)


def forward(
    x_MNHWI: Tensor, weight_MOHWI: Tensor, geometry: Geometry, stats_M4I: Tensor | None, relu: bool, statistics: bool
) -> tuple[Tensor, Tensor | None]:
    """y [M, N, OH, OW, CO] in x's dtype and, where asked for, the moments [M, T, 3, CO] of its tiles.

    x is contiguous. stats_M4I puts batch norm in the prologue, `relu` ReLU after it.
    """
    g = geometry
    if not gpu.by_triton(x_MNHWI):
        a_MNHWI = x_MNHWI if stats_M4I is None else stacked_norm.apply(x_MNHWI, None, stats_M4I, relu)
        y_MNOHW = _by_member(
            lambda a_NHWI, w_OIHW: functional.conv2d(_images(a_NHWI), w_OIHW, None, g.stride, g.padding),
            a_MNHWI, _operands(weight_MOHWI, x_MNHWI),
        )  # fmt: skip
        y_MNHWO = y_MNOHW.permute(0, 1, 3, 4, 2).to(x_MNHWI.dtype).contiguous()
        return y_MNHWO, stacked_norm.moments(y_MNHWO) if statistics else None
    weight = _dense_rows(weight_MOHWI)
    tile = product_tile(g.CI, g.CO, g.KH * g.KW, x_MNHWI.element_size())
    grid = (-(-g.R // tile.rows), -(-g.CO // tile.columns), g.M)
    y = x_MNHWI.new_empty(g.y_shape)
    moments = x_MNHWI.new_empty((g.M, grid[0], 3, g.CO), dtype=torch.float32) if statistics else None
    _launch(
        forward_kernel, grid, tile, y.device, x_MNHWI, weight, y, stats_M4I, moments, weight.stride(0), g.R,
        *g.kernel_sizes, relu, row_alignment(16, weight), _precision(y.dtype),
    )  # fmt: skip
    return y, moments


def input_gradient(
    dy_MNPQO: Tensor,
    weight_MOHWI: Tensor,
    geometry: Geometry,
    x_MNHWI: Tensor | None,
    stats_M4I: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor | None]:
    """dx [M, N, H, W, CI] in dy's dtype, and None.

    With stats_M4I and x, those of the prologue: g, the gradient of the batch norm's output, and the partial sums
    [M, T, 2, CI] of g and of g xhat. dy and x are contiguous.
    """
    g = geometry
    if not gpu.by_triton(dy_MNPQO):
        shape = (g.N, g.CI, g.H, g.W)
        dx_MNIHW = _by_member(
            lambda dy_NPQO, w_OIHW: conv2d_input(shape, w_OIHW, _images(dy_NPQO), g.stride, g.padding),
            dy_MNPQO, _operands(weight_MOHWI, dy_MNPQO),
        )  # fmt: skip
        dx_MNHWI = dx_MNIHW.to(dy_MNPQO.dtype).permute(0, 1, 3, 4, 2).contiguous()
        if stats_M4I is None or x_MNHWI is None:
            return dx_MNHWI, None
        sums_M12I, g_MNHWI = stacked_norm.gradient_sums(dx_MNHWI, None, x_MNHWI, None, stats_M4I, relu, True)
        assert g_MNHWI is not None
        return g_MNHWI, sums_M12I
    weight = _dense_rows(weight_MOHWI)
    tile = product_tile(g.CO, g.CI, g.KH * g.KW, dy_MNPQO.element_size())
    places = g.N * -(-g.H // g.stride) * -(-g.W // g.stride)
    grid = (-(-places // tile.rows) * g.stride**2, -(-g.CI // tile.columns), g.M)
    dx = dy_MNPQO.new_empty(g.x_shape)
    sums = None if stats_M4I is None else dx.new_empty((g.M, grid[0], 2, g.CI), dtype=torch.float32)
    _launch(
        input_gradient_kernel, grid, tile, dx.device, dy_MNPQO, weight, dx, x_MNHWI, stats_M4I, sums,
        weight.stride(0), g.N, *g.kernel_sizes, relu, row_alignment(16, weight), _precision(dx.dtype),
    )  # fmt: skip
    return dx, sums


def weight_gradient(
    x_MNHWI: Tensor, dy_MNPQO: Tensor, geometry: Geometry, stats_M4I: Tensor | None, relu: bool
) -> Tensor:
    """Partial sums [M, T, CO, KH, KW, CI] of dw in float32 (float64 for such inputs). x and dy are contiguous."""
    g = geometry
    if not gpu.by_triton(x_MNHWI):
        a_MNHWI, stride = x_MNHWI, g.stride
        if stats_M4I is not None:
            a_MNHWI = stacked_norm.apply(x_MNHWI, None, stats_M4I, relu)
        if (g.KH, g.KW, g.padding) == (1, 1, 0):  # see fastwi.kernels.onednn
            a_MNHWI, stride = a_MNHWI[:, :, ::stride, ::stride], 1
        shape = (g.CO, g.CI, g.KH, g.KW)
        dw_MOIHW = _by_member(
            lambda a_NHWI, dy_NPQO: conv2d_weight(_images(a_NHWI), shape, _images(dy_NPQO), stride, g.padding),
            a_MNHWI, dy_MNPQO,
        )  # fmt: skip
        return dw_MOIHW.permute(0, 1, 3, 4, 2).contiguous()[:, None]
    tile = weight_tile(g.CI, g.CO, g.KH * g.KW, x_MNHWI.element_size())
    chunk = chunk_rows(g, tile)
    chunks = -(-g.R // chunk)
    partial = x_MNHWI.new_empty((g.M, chunks, *g.weight_shape[1:]), dtype=torch.float32)
    grid = (-(-g.K // tile.depth) * -(-g.CO // tile.columns) * chunks, 1, g.M)  # y is 65,535 at most
    _launch(
        weight_gradient_kernel, grid, tile, partial.device, x_MNHWI, dy_MNPQO, partial, stats_M4I,
        g.R, *g.kernel_sizes, relu, _precision(x_MNHWI.dtype), chunk,
    )  # fmt: skip
    return partial


def _dense_rows(weight_MOHWI: Tensor) -> Tensor:
    """The weights with each member's values in one dense stretch, as a population's rows have them."""
    return weight_MOHWI if weight_MOHWI[0].is_contiguous() else weight_MOHWI.contiguous()


def _precision(dtype: torch.dtype) -> str:
    """float32 products are exact; those of 16-bit inputs always are."""
    return "ieee" if dtype == torch.float32 else "tf32"


@triton.jit
def _operand(w, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights in the activations' dtype; as they are where they have it, so that copies can run ahead."""
    if w.dtype != DTYPE:
        w = rounded(w.to(tl.float32), DTYPE)
    return w


@triton.jit
def _product(a, b, sums, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """sums + a @ b in float32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def _patches(  # type: ignore[no-untyped-def]
    x_NHWI,  # one member's
    stats_M4I, member,  # stats None: no prologue
    image_R, top_R, left_R, inside_R,  # of each row's patch; top and left may lie outside the image
    k_start,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Columns k_start .. k_start + BLOCK_K of the rows' patches, [R, BLOCK_K], in x's dtype: k = (kh, kw, i)."""
    if CI % BLOCK_K == 0:  # one tap, so each row has one place
        tap = k_start // CI
        # The hint is what lets Triton load 16 bytes at a time: it does not see through the remainder.
        channel_K = tl.multiple_of(k_start % CI, BLOCK_K) + tl.arange(0, BLOCK_K)
        h = top_R[:, None] + tap // KW
        w = left_R[:, None] + tap % KW
        inside = inside_R[:, None]
    else:
        k = k_start + tl.arange(0, BLOCK_K)
        channel_K = k % CI
        tap_K = k // CI
        h = top_R[:, None] + (tap_K // KW)[None, :]
        w = left_R[:, None] + (tap_K % KW)[None, :]
        inside = inside_R[:, None] & (k < KH * KW * CI)[None, :]
    inside = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    at = ((image_R[:, None] * H + h) * W + w) * CI + channel_K[None, :]
    x = tl.load(x_NHWI + at, mask=inside, other=0.0)
    if stats_M4I is not None:
        scale_K = tl.load(stats_M4I + member * (4 * CI) + SCALE * CI + channel_K)
        shift_K = tl.load(stats_M4I + member * (4 * CI) + SHIFT * CI + channel_K)
        a = x.to(tl.float32) * scale_K[None, :] + shift_K[None, :]
        if RELU:
            a = tl.where(a < 0.0, 0.0, a)  # keeps NaN, as torch does
        x = rounded(tl.where(inside, a, 0.0), x.dtype)
    return x


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    x_MNHWI, w_MOK, y_MRO,
    stats_M4I,  # None: no prologue
    moments_MT3O,  # None: no statistics
    member_stride,  # of the weights, in elements
    R,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    RELU: tl.constexpr, ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of y: rows x channels out, of one member. Grid: tiles of rows, tiles of channels, members."""
    member = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * BLOCK_R // (OH * OW)  # image
    row_R = tl.program_id(0) * BLOCK_R - first * (OH * OW) + tl.arange(0, BLOCK_R)
    out_O = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_R = row_R < R - first * (OH * OW)
    image_R = row_R // (OH * OW)
    x_NHWI = x_MNHWI + (member * (R // (OH * OW)) + first) * (H * W * CI)
    w_OK = tl.multiple_of(w_MOK + member * member_stride, ALIGNED)
    top_R = row_R // OW % OH * STRIDE - PADDING
    left_R = row_R % OW * STRIDE - PADDING
    sums = tl.zeros((BLOCK_R, BLOCK_O), tl.float32)
    for k_start in range(0, KH * KW * CI, BLOCK_K):
        a = _patches(
            x_NHWI, stats_M4I, member, image_R, top_R, left_R, inside_R, k_start, H, W, CI, KH, KW, RELU, BLOCK_K
        )  # fmt: skip
        k = k_start + tl.arange(0, BLOCK_K)
        exists = (k < KH * KW * CI)[:, None] & (out_O < CO)[None, :]
        w = tl.load(w_OK + out_O[None, :] * (KH * KW * CI) + k[:, None], mask=exists, other=0.0)
        sums = _product(a, _operand(w, x_MNHWI.dtype.element_ty), sums, PRECISION)
    y = rounded(sums, y_MRO.dtype.element_ty)
    at = (member * R + first * (OH * OW)) * CO + row_R[:, None] * CO + out_O[None, :]
    tl.store(y_MRO + at, y, mask=inside_R[:, None] & (out_O < CO)[None, :])
    if moments_MT3O is not None:
        store_moments(y.to(tl.float32), inside_R, moments_MT3O, member, out_O, CO)


@triton.jit
def input_gradient_kernel(  # type: ignore[no-untyped-def]
    dy_MNPQO, w_MOK, dx_MNHWI,
    x_MNHWI, stats_M4I, sums_MT2I,  # None: no prologue
    member_stride,  # of the weights, in elements
    N,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    RELU: tl.constexpr, ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of dx. Grid: tiles of rows times phases, tiles of channels, members.

    Only every STRIDE-th tap reaches a place, and which ones depends on its phase (h % STRIDE, w % STRIDE). A program
    has places of one phase. After a prologue it stores g and its partial sums: see `input_gradient`.
    """
    pid, member = tl.program_id(0), tl.program_id(2).to(tl.int64)
    PLACES_H: tl.constexpr = (H + STRIDE - 1) // STRIDE
    PLACES_W: tl.constexpr = (W + STRIDE - 1) // STRIDE
    if STRIDE == 1:
        phase_h, phase_w = 0, 0
    else:
        phase_h, phase_w = pid % (STRIDE * STRIDE) // STRIDE, pid % STRIDE
    start = pid // (STRIDE * STRIDE) * BLOCK_R
    first = start // (PLACES_H * PLACES_W)  # image
    row_R = start - first * (PLACES_H * PLACES_W) + tl.arange(0, BLOCK_R)
    image_R = row_R // (PLACES_H * PLACES_W)
    place_h_R = row_R // PLACES_W % PLACES_H
    place_w_R = row_R % PLACES_W
    h_R = place_h_R * STRIDE + phase_h
    w_R = place_w_R * STRIDE + phase_w
    inside_R = (row_R < (N - first) * (PLACES_H * PLACES_W)) & (h_R < H) & (w_R < W)
    in_I = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)

    # The phase's taps are first, first + STRIDE, ...; tap number j of a place reads output row p_R - j.
    first_h, first_w = (phase_h + PADDING) % STRIDE, (phase_w + PADDING) % STRIDE
    taps_h, taps_w = (KH - first_h + STRIDE - 1) // STRIDE, (KW - first_w + STRIDE - 1) // STRIDE
    p_R = place_h_R + (phase_h + PADDING) // STRIDE
    q_R = place_w_R + (phase_w + PADDING) // STRIDE

    dy_NPQO = dy_MNPQO + (member * N + first) * (OH * OW * CO)
    w_OK = tl.multiple_of(w_MOK + member * member_stride, ALIGNED)
    sums = tl.zeros((BLOCK_R, BLOCK_I), tl.float32)
    for k_start in range(0, taps_h * taps_w * CO, BLOCK_K):
        if CO % BLOCK_K == 0:
            tap = k_start // CO
            out_K = tl.multiple_of(k_start % CO, BLOCK_K) + tl.arange(0, BLOCK_K)  # see _patches
            tap_h, tap_w = tap // taps_w, tap % taps_w
            p, q = p_R[:, None] - tap_h, q_R[:, None] - tap_w
            reached = inside_R[:, None]
            at_K = out_K * (KH * KW * CI) + ((first_h + tap_h * STRIDE) * KW + first_w + tap_w * STRIDE) * CI
            exists = (in_I < CI)[None, :]
        else:
            k = k_start + tl.arange(0, BLOCK_K)
            out_K, tap_K = k % CO, k // CO
            tap_h_K, tap_w_K = tap_K // taps_w, tap_K % taps_w
            p, q = p_R[:, None] - tap_h_K[None, :], q_R[:, None] - tap_w_K[None, :]
            exists_K = k < taps_h * taps_w * CO
            reached = inside_R[:, None] & exists_K[None, :]
            at_K = out_K * (KH * KW * CI) + ((first_h + tap_h_K * STRIDE) * KW + first_w + tap_w_K * STRIDE) * CI
            exists = exists_K[:, None] & (in_I < CI)[None, :]
        reached = reached & (p >= 0) & (p < OH) & (q >= 0) & (q < OW)
        dy = tl.load(
            dy_NPQO + ((image_R[:, None] * OH + p) * OW + q) * CO + out_K[None, :], mask=reached, other=0.0
        )  # fmt: skip
        w = tl.load(w_OK + at_K[:, None] + in_I[None, :], mask=exists, other=0.0)
        sums = _product(dy, _operand(w, dy_MNPQO.dtype.element_ty), sums, PRECISION)

    exists = inside_R[:, None] & (in_I < CI)[None, :]
    at = (member * N + first) * (H * W * CI) + ((image_R * H + h_R) * W + w_R)[:, None] * CI + in_I[None, :]
    if stats_M4I is not None:
        x = tl.load(x_MNHWI + at, mask=exists, other=0.0).to(tl.float32)
        if RELU:
            sums = tl.where(normed(x, stats_M4I, member, in_I, CI) > 0.0, sums, 0.0)
        g = tl.where(exists, rounded(sums, dx_MNHWI.dtype.element_ty).to(tl.float32), 0.0)
        store_gradient_sums(g, standardised(x, stats_M4I, member, in_I, CI), sums_MT2I, member, in_I, CI)
    tl.store(dx_MNHWI + at, rounded(sums, dx_MNHWI.dtype.element_ty), mask=exists)


@triton.jit
def weight_gradient_kernel(  # type: ignore[no-untyped-def]
    x_MNHWI, dy_MRO, partial_MSE,
    stats_M4I,  # None: no prologue
    R,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_K x BLOCK_O of one chunk's sum. Grid: blocks of k and of o times chunks of CHUNK rows, 1, members."""
    BLOCKS_K: tl.constexpr = (KH * KW * CI + BLOCK_K - 1) // BLOCK_K
    BLOCKS: tl.constexpr = BLOCKS_K * ((CO + BLOCK_O - 1) // BLOCK_O)
    pid, chunk, member = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS, tl.program_id(2).to(tl.int64)
    k_start = pid % BLOCKS_K * BLOCK_K
    out_O = pid // BLOCKS_K * BLOCK_O + tl.arange(0, BLOCK_O)
    start = chunk * CHUNK
    first = start // (OH * OW)  # image
    before = first * (OH * OW)  # rows
    x_NHWI = x_MNHWI + (member * (R // (OH * OW)) + first) * (H * W * CI)
    dy_RO = dy_MRO + (member * R + before) * CO
    sums = tl.zeros((BLOCK_K, BLOCK_O), tl.float32)
    for row_start in range(start - before, min(start + CHUNK, R) - before, BLOCK_R):
        row_R = row_start + tl.arange(0, BLOCK_R)
        inside_R = row_R < R - before
        image_R = row_R // (OH * OW)
        top_R = row_R // OW % OH * STRIDE - PADDING
        left_R = row_R % OW * STRIDE - PADDING
        a = _patches(
            x_NHWI, stats_M4I, member, image_R, top_R, left_R, inside_R, k_start, H, W, CI, KH, KW, RELU, BLOCK_K
        )  # fmt: skip
        exists = inside_R[:, None] & (out_O < CO)[None, :]
        dy = tl.load(dy_RO + row_R[:, None] * CO + out_O[None, :], mask=exists, other=0.0)
        sums = _product(tl.trans(a), dy, sums, PRECISION)
    k = k_start + tl.arange(0, BLOCK_K)
    partial_E = partial_MSE + (member * ((R + CHUNK - 1) // CHUNK) + chunk) * (CO * KH * KW * CI)
    at = partial_E + out_O[None, :] * (KH * KW * CI) + k[:, None]
    tl.store(at, sums, mask=(k < KH * KW * CI)[:, None] & (out_O < CO)[None, :])
