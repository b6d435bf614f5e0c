"""Batch norms of M networks at once, with the residual sum and ReLU behind them.

Training (Ioffe & Szegedy 2015), over the R = N * H * W values of each channel of each member:

    z = act(x scale + shift + residual),   scale = weight inv,  shift = bias - mean scale,  inv = 1 / sqrt(var + eps)
    g = dz where z > 0;   dbias = sum g;   dweight = sum g xhat;   dresidual = g;   xhat = (x - mean) inv
    dx = scale (g - (dbias + xhat dweight) / R)

By Triton on a GPU. Elsewhere by torch, in any floating dtype: it computes in float32, or in float64 for such inputs,
and rounds once.

In evaluation mean and var are the running ones, constants, so dx = scale g. Statistics are in float32 within a tile,
about the tile's own mean, and in float64 over tiles (Chan, Golub & LeVeque 1983). No atomics: results are the same
each time, and the same for a member whatever the others are.

Memory traffic in bytes a value of x, for bf16: statistics 2 (0 where the convolution made them), z 4, gradients' sums
4, dx 6; with a residual 2 more for z, and 4 more for the sums (z is read, and g written for both that need it).

Symbols: M members, R rows (images and places), C channels, T tiles. stats_M4C: mean, inv, scale and shift.
"""

from typing import Any

import torch
from torch import Tensor

from fastwi.kernels import gpu
from fastwi.kernels.gpu import rounded, tl, triton
from fastwi.kernels.stacked_geometry import norm_tile, power_of_two

MEAN, INVERSE, SCALE, SHIFT = (tl.constexpr(row) for row in range(4))  # rows of stats_M4C
_WARPS = 4
_TILES = 64  # partial results that a program adds at a time


def wide(x: Tensor) -> torch.dtype:
    """The dtype that torch computes in."""
    return torch.promote_types(x.dtype, torch.float32)


def _rows(stats_M4C: Tensor) -> tuple[Tensor, ...]:
    """Mean, inv, scale and shift as [M, 1, 1, 1, C]."""
    return stats_M4C[:, None, None, None].unbind(-2)


def _sums(x_MNHWC: Tensor) -> Tensor:
    """[M, C], over images and places. Of one member at a time: torch sums [M, ...] in another order for another M."""
    return torch.stack([x_NHWC.sum((0, 1, 2)) for x_NHWC in x_MNHWC])


def _launch(kernel: Any, x_MNHWC: Tensor, *arguments: Any) -> None:
    """Launch a pass over activations like x, one program a tile."""
    grid, sizes = _cut(x_MNHWC)
    with gpu.on(x_MNHWC.device):
        kernel[grid](*arguments, *sizes, num_warps=_WARPS, enable_fp_fusion=True)


def _cut(x_MNHWC: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int, int]]:
    """The grid of a pass over activations, and (R, C, rows of a tile, channels of a tile)."""
    M, C = x_MNHWC.shape[0], x_MNHWC.shape[-1]
    R = x_MNHWC[0].numel() // C
    rows, columns = norm_tile(C)
    return (-(-R // rows), -(-C // columns), M), (R, C, rows, columns)


def moments(x_MNHWC: Tensor) -> Tensor:
    """[M, T, 3, C]: number, sum, and squares about its own mean, of each tile of contiguous x (torch: one tile)."""
    if not gpu.by_triton(x_MNHWC):
        x = x_MNHWC.to(wide(x_MNHWC))
        total_MC = _sums(x)
        count = x[0, ..., 0].numel()
        apart = x - (total_MC / count)[:, None, None, None]
        return torch.stack([torch.full_like(total_MC, count), total_MC, _sums(apart.square())], 1)[:, None]
    (tiles, _, M), (_, C, *_) = _cut(x_MNHWC)
    moments_MT3C = x_MNHWC.new_empty((M, tiles, 3, C), dtype=torch.float32)
    _launch(moments_kernel, x_MNHWC, x_MNHWC, moments_MT3C)
    return moments_MT3C


def settle(
    moments_MT3C: Tensor | None,
    weight_MC: Tensor,
    bias_MC: Tensor,
    running_mean_MC: Tensor,
    running_var_MC: Tensor,
    factor: float | Tensor,
    eps: float,
) -> Tensor:
    """stats_M4C from moments, with the running statistics updated in place; from these without moments.

    All are float32 with dense channels and any member strides. `factor` is the weight of the new statistics in the
    running ones: a number, or float32 [M]. The running variance is unbiased.
    """
    if not gpu.by_triton(weight_MC):
        if moments_MT3C is None:
            mean_MC, var_MC = running_mean_MC, running_var_MC
        else:
            count_MTC, total_MTC, squares_MTC = moments_MT3C.double().unbind(2)
            rows_MC = count_MTC.sum(1)
            mean_MC = total_MTC.sum(1) / rows_MC
            apart_MTC = total_MTC / count_MTC - mean_MC[:, None]
            var_MC = (squares_MTC + count_MTC * apart_MTC.square()).sum(1) / rows_MC
            unbiased_MC = var_MC * rows_MC / (rows_MC - 1)
            share = factor[:, None] if isinstance(factor, Tensor) else factor
            running_mean_MC.copy_(running_mean_MC + (mean_MC - running_mean_MC) * share)
            running_var_MC.copy_(running_var_MC + (unbiased_MC - running_var_MC) * share)
        inverse_MC = (var_MC.double() + eps).rsqrt()
        scale_MC = weight_MC * inverse_MC
        stats_M4C = torch.stack([mean_MC.double(), inverse_MC, scale_MC, bias_MC - mean_MC * scale_MC], 1)
        return stats_M4C.to(wide(weight_MC))
    M, C = weight_MC.shape
    stats_M4C = weight_MC.new_empty((M, 4, C), dtype=torch.float32)
    columns = power_of_two(C, 8, 64)
    with gpu.on(weight_MC.device):
        settle_kernel[(-(-C // columns), M)](
            moments_MT3C, weight_MC, bias_MC, running_mean_MC, running_var_MC, stats_M4C,
            weight_MC.stride(0), bias_MC.stride(0), running_mean_MC.stride(0), running_var_MC.stride(0),
            factor, 0 if moments_MT3C is None else moments_MT3C.shape[1],
            eps, C, isinstance(factor, Tensor), _TILES, columns, num_warps=_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return stats_M4C


def apply(x_MNHWC: Tensor, residual_MNHWC: Tensor | None, stats_M4C: Tensor, relu: bool) -> Tensor:
    """z = act(x scale + shift + residual) in x's dtype; x and the residual are contiguous."""
    if not gpu.by_triton(x_MNHWC):
        _, _, scale, shift = _rows(stats_M4C)
        z = x_MNHWC * scale + shift
        if residual_MNHWC is not None:
            z = z + residual_MNHWC
        return (z.relu() if relu else z).to(x_MNHWC.dtype)
    z = torch.empty_like(x_MNHWC)
    _launch(apply_kernel, x_MNHWC, x_MNHWC, residual_MNHWC, stats_M4C, z, relu)
    return z


def gradient_sums(
    dz_MNHWC: Tensor,
    dz2_MNHWC: Tensor | None,
    x_MNHWC: Tensor,
    z_MNHWC: Tensor | None,
    stats_M4C: Tensor,
    relu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Partial sums [M, T, 2, C] of g and of g xhat, and g in x's dtype where `keep`. dz2 is added to dz.

    `z` shows where the ReLU passed; without it x does, which is right where there was no residual.
    """
    if not gpu.by_triton(x_MNHWC):
        mean, inverse, scale, shift = _rows(stats_M4C)
        g = dz_MNHWC.to(wide(x_MNHWC))
        if dz2_MNHWC is not None:
            g = g + dz2_MNHWC
        if relu:
            g = torch.where((x_MNHWC * scale + shift if z_MNHWC is None else z_MNHWC) > 0, g, 0)
        if keep:
            g = g.to(x_MNHWC.dtype)
        sums_M2C = torch.stack([_sums(g.to(wide(g))), _sums(g * ((x_MNHWC - mean) * inverse))], 1)
        return sums_M2C[:, None], g if keep else None
    (tiles, _, M), (_, C, *_) = _cut(x_MNHWC)
    sums_MT2C = x_MNHWC.new_empty((M, tiles, 2, C), dtype=torch.float32)
    kept = torch.empty_like(x_MNHWC) if keep else None
    _launch(
        gradient_sums_kernel, x_MNHWC, dz_MNHWC, dz2_MNHWC, x_MNHWC, z_MNHWC, stats_M4C, kept, sums_MT2C, relu
    )  # fmt: skip
    return sums_MT2C, kept


def parameter_gradients(sums_MT2C: Tensor) -> Tensor:
    """[M, 2, C]: dbias and dweight."""
    if not gpu.by_triton(sums_MT2C):
        return sums_MT2C.double().sum(1).to(sums_MT2C.dtype)
    M, T, _, C = sums_MT2C.shape
    gradients_M2C = sums_MT2C.new_empty((M, 2, C))
    columns = power_of_two(2 * C, 8, 64)
    with gpu.on(sums_MT2C.device):
        parameter_gradients_kernel[(-(-2 * C // columns), M)](
            sums_MT2C, gradients_M2C, T, C, _TILES, columns, num_warps=_WARPS, enable_fp_fusion=True
        )
    return gradients_M2C


def input_gradient(
    g_MNHWC: Tensor, x_MNHWC: Tensor, stats_M4C: Tensor, gradients_M2C: Tensor, relu: bool, training: bool
) -> Tensor:
    """dx from g, or from dz with `relu`: the mask then comes from x. In evaluation the statistics are constants."""
    if not gpu.by_triton(x_MNHWC):
        mean, inverse, scale, shift = _rows(stats_M4C)
        g = torch.where(x_MNHWC * scale + shift > 0, g_MNHWC, 0) if relu else g_MNHWC
        if training:
            dbias, dweight = gradients_M2C[:, None, None, None].unbind(-2)
            g = g - (dbias + (x_MNHWC - mean) * inverse * dweight) / x_MNHWC[0, ..., 0].numel()
        return (g * scale).to(x_MNHWC.dtype)
    dx = torch.empty_like(x_MNHWC)
    inverse_rows = 1.0 / x_MNHWC[0, ..., 0].numel() if training else 0.0
    _launch(input_gradient_kernel, x_MNHWC, g_MNHWC, x_MNHWC, stats_M4C, gradients_M2C, dx, inverse_rows, relu)
    return dx


@triton.jit
def _places(R, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):  # type: ignore[no-untyped-def]
    """The program's rows, channels, and places in activations, and which exist. Grid: tiles, channels, members."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = (row_R < R)[:, None] & (channel_C < C)[None, :]
    at = tl.program_id(2).to(tl.int64) * R * C + row_R[:, None] * C + channel_C[None, :]
    return row_R, channel_C, exists, at


@triton.jit
def load_row(stats_M4C, member, ROW: tl.constexpr, channel_C, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """One of mean, inv, scale and shift of the channels of a member, [1, C]."""
    return tl.load(stats_M4C + member * (4 * C) + ROW * C + channel_C, mask=channel_C < C, other=0.0)[None, :]


@triton.jit
def store_moments(y, inside_R, moments_3C, channel_C, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Number, sum, and sum of squares about the tile's own mean, of each channel of a tile y [R, C] in float32."""
    count = tl.sum(inside_R.to(tl.float32), 0)
    total_C = tl.sum(tl.where(inside_R[:, None], y, 0.0), 0)
    apart = tl.where(inside_R[:, None], y - (total_C / count)[None, :], 0.0)
    squares_C = tl.sum(apart * apart, 0)
    exists_C = channel_C < C
    tl.store(moments_3C + channel_C, total_C * 0.0 + count, mask=exists_C)
    tl.store(moments_3C + C + channel_C, total_C, mask=exists_C)
    tl.store(moments_3C + 2 * C + channel_C, squares_C, mask=exists_C)


@triton.jit
def moments_kernel(  # type: ignore[no-untyped-def]
    x_MRC, moments_MT3C, R, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Number, sum and squares about its own mean of one tile."""
    row_R, channel_C, exists, at = _places(R, C, BLOCK_R, BLOCK_C)
    x = tl.load(x_MRC + at, mask=exists, other=0.0)
    place = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    store_moments(x.to(tl.float32), row_R < R, moments_MT3C + place * (3 * C), channel_C, C)


@triton.jit
def settle_kernel(  # type: ignore[no-untyped-def]
    moments_MT3C,  # None: evaluation
    weight_MC, bias_MC, mean_MC, var_MC, stats_M4C,
    weight_stride, bias_stride, mean_stride, var_stride,  # of members, in elements
    factor,  # a number, or float32 [M] with FACTOR_EACH
    T,
    EPS: tl.constexpr, C: tl.constexpr, FACTOR_EACH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean, inv, scale and shift, and the running statistics' update. Grid: blocks of channels, members."""
    member = tl.program_id(1).to(tl.int64)
    channel_C = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists_C = channel_C < C
    mean_C, var_C = mean_MC + member * mean_stride + channel_C, var_MC + member * var_stride + channel_C
    running_mean = tl.load(mean_C, mask=exists_C, other=0.0).to(tl.float64)
    running_var = tl.load(var_C, mask=exists_C, other=1.0).to(tl.float64)
    if moments_MT3C is None:
        mean, var = running_mean, running_var
    else:
        moments_T3C = moments_MT3C + member * T * (3 * C) + channel_C[None, :]
        count = tl.zeros((BLOCK_T, BLOCK_C), tl.float64)
        total = tl.zeros((BLOCK_T, BLOCK_C), tl.float64)
        for start in range(0, T, BLOCK_T):
            tile_T = start + tl.arange(0, BLOCK_T)
            exists = (tile_T < T)[:, None] & exists_C[None, :]
            at = moments_T3C + tile_T[:, None] * (3 * C)
            count += tl.load(at, mask=exists, other=0.0).to(tl.float64)
            total += tl.load(at + C, mask=exists, other=0.0).to(tl.float64)
        rows = tl.maximum(tl.sum(count, 0), 1.0)  # channels that don't exist have none
        mean = tl.sum(total, 0) / rows
        squares = tl.zeros((BLOCK_T, BLOCK_C), tl.float64)
        for start in range(0, T, BLOCK_T):
            tile_T = start + tl.arange(0, BLOCK_T)
            exists = (tile_T < T)[:, None] & exists_C[None, :]
            at = moments_T3C + tile_T[:, None] * (3 * C)
            number = tl.load(at, mask=exists, other=0.0).to(tl.float64)
            apart = tl.load(at + C, mask=exists, other=0.0).to(tl.float64) / tl.maximum(number, 1.0) - mean[None, :]
            squares += tl.load(at + 2 * C, mask=exists, other=0.0).to(tl.float64) + number * apart * apart
        var = tl.sum(squares, 0) / rows
        share = factor
        if FACTOR_EACH:
            share = tl.load(factor + member)
        unbiased = var * (rows / tl.maximum(rows - 1.0, 1.0))
        tl.store(mean_C, (running_mean + (mean - running_mean) * share).to(tl.float32), mask=exists_C)
        tl.store(var_C, (running_var + (unbiased - running_var) * share).to(tl.float32), mask=exists_C)
    weight = tl.load(weight_MC + member * weight_stride + channel_C, mask=exists_C, other=0.0).to(tl.float64)
    bias = tl.load(bias_MC + member * bias_stride + channel_C, mask=exists_C, other=0.0).to(tl.float64)
    inverse = 1.0 / tl.sqrt(var + EPS)
    stats_4C = stats_M4C + member * (4 * C) + channel_C
    tl.store(stats_4C + MEAN * C, mean.to(tl.float32), mask=exists_C)
    tl.store(stats_4C + INVERSE * C, inverse.to(tl.float32), mask=exists_C)
    tl.store(stats_4C + SCALE * C, (weight * inverse).to(tl.float32), mask=exists_C)
    tl.store(stats_4C + SHIFT * C, (bias - mean * weight * inverse).to(tl.float32), mask=exists_C)


@triton.jit
def apply_kernel(  # type: ignore[no-untyped-def]
    x_MRC,
    residual_MRC,  # or None
    stats_M4C, z_MRC,
    RELU: tl.constexpr, R, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z = act(x scale + shift + residual)."""
    _, channel_C, exists, at = _places(R, C, BLOCK_R, BLOCK_C)
    member = tl.program_id(2).to(tl.int64)
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    z = x * load_row(stats_M4C, member, SCALE, channel_C, C) + load_row(stats_M4C, member, SHIFT, channel_C, C)
    if residual_MRC is not None:
        z += tl.load(residual_MRC + at, mask=exists, other=0.0).to(tl.float32)
    if RELU:
        z = tl.where(z < 0.0, 0.0, z)  # keeps NaN, as torch does
    tl.store(z_MRC + at, rounded(z, z_MRC.dtype.element_ty), mask=exists)


@triton.jit
def gradient_sums_kernel(  # type: ignore[no-untyped-def]
    dz_MRC,
    dz2_MRC,  # of a second user of z, or None
    x_MRC,
    z_MRC,  # shows where the ReLU passed; None: x does, there being no residual
    stats_M4C,
    g_MRC,  # or None: not wanted
    sums_MT2C,
    RELU: tl.constexpr, R, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over a tile of g and of g xhat, and g itself."""
    _, channel_C, exists, at = _places(R, C, BLOCK_R, BLOCK_C)
    member = tl.program_id(2).to(tl.int64)
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(dz_MRC + at, mask=exists, other=0.0).to(tl.float32)
    if dz2_MRC is not None:
        g += tl.load(dz2_MRC + at, mask=exists, other=0.0).to(tl.float32)
    if RELU:
        if z_MRC is not None:
            passed = tl.load(z_MRC + at, mask=exists, other=0.0).to(tl.float32) > 0.0
        else:
            scale = load_row(stats_M4C, member, SCALE, channel_C, C)
            passed = x * scale + load_row(stats_M4C, member, SHIFT, channel_C, C) > 0.0
        g = tl.where(passed, g, 0.0)
    if g_MRC is not None:
        low = rounded(g, g_MRC.dtype.element_ty)
        tl.store(g_MRC + at, low, mask=exists)
        g = low.to(tl.float32)
    xhat = (x - load_row(stats_M4C, member, MEAN, channel_C, C)) * load_row(stats_M4C, member, INVERSE, channel_C, C)
    sums_2C = sums_MT2C + (member * tl.num_programs(0) + tl.program_id(0)) * (2 * C) + channel_C
    tl.store(sums_2C, tl.sum(g, 0), mask=channel_C < C)
    tl.store(sums_2C + C, tl.sum(g * xhat, 0), mask=channel_C < C)


@triton.jit
def parameter_gradients_kernel(  # type: ignore[no-untyped-def]
    sums_MT2C, gradients_M2C, T, C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The tiles' sums added, in float64: dbias and dweight. Grid: blocks of the 2 C sums, members."""
    member = tl.program_id(1).to(tl.int64)
    sum_C = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float64)
    for start in range(0, T, BLOCK_T):
        tile_T = start + tl.arange(0, BLOCK_T)
        at = sums_MT2C + member * T * (2 * C) + tile_T[:, None] * (2 * C) + sum_C[None, :]
        exists = (tile_T < T)[:, None] & (sum_C < 2 * C)[None, :]
        total += tl.load(at, mask=exists, other=0.0).to(tl.float64)
    tl.store(gradients_M2C + member * (2 * C) + sum_C, tl.sum(total, 0).to(tl.float32), mask=sum_C < 2 * C)


@triton.jit
def input_gradient_kernel(  # type: ignore[no-untyped-def]
    g_MRC, x_MRC, stats_M4C, gradients_M2C, dx_MRC,
    inverse_rows,  # 1 / R; 0 in evaluation
    RELU: tl.constexpr, R, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx; with RELU, g is dz and the ReLU's mask comes from x."""
    _, channel_C, exists, at = _places(R, C, BLOCK_R, BLOCK_C)
    member = tl.program_id(2).to(tl.int64)
    gradients_2C = gradients_M2C + member * (2 * C) + channel_C
    scale = load_row(stats_M4C, member, SCALE, channel_C, C)
    slope = tl.load(gradients_2C + C, mask=channel_C < C, other=0.0)[None, :]
    slope *= load_row(stats_M4C, member, INVERSE, channel_C, C) * inverse_rows
    offset = tl.load(gradients_2C, mask=channel_C < C, other=0.0)[None, :] * inverse_rows
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(g_MRC + at, mask=exists, other=0.0).to(tl.float32)
    if RELU:
        g = tl.where(x * scale + load_row(stats_M4C, member, SHIFT, channel_C, C) > 0.0, g, 0.0)
    dx = scale * (g - offset - (x - load_row(stats_M4C, member, MEAN, channel_C, C)) * slope)
    tl.store(dx_MRC + at, rounded(dx, dx_MRC.dtype.element_ty), mask=exists)
