"""The Triton kernels of M networks' batch norms at once, with the residual sum and ReLU behind them.

Training (Ioffe & Szegedy 2015), over the R = N * H * W values of each channel of each member:

    z = act(x scale + shift + residual),   scale = weight inv,  shift = bias - mean scale,  inv = 1 / sqrt(var + eps)
    g = dz where z > 0;   dbias = sum g;   dweight = sum g xhat;   dresidual = g;   xhat = (x - mean) inv
    dx = scale (g - (dbias + xhat dweight) / R)

In evaluation mean and var are the running ones, constants, so dx = scale g. Statistics are in float32 within a tile,
about the tile's own mean, and in float64 over tiles (Chan, Golub & LeVeque 1983). No atomics: results are the same
each time, and the same for a member whatever the others are.

Memory traffic in bytes a value of x, for bf16: statistics 2 (0 where the convolution made them), z 4, gradients' sums
4, dx 6; with a residual 2 more for z, and 4 more for the sums (z is read, and g written for both that need it).

Symbols: M members, R rows (images and places), C channels, T tiles. stats_M4C: mean, inv, scale and shift.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastwi.kernels.stacked_conv_triton import INVERSE, MEAN, SCALE, SHIFT, on, rounded, store_moments
from fastwi.kernels.stacked_geometry import norm_tile, power_of_two

_WARPS = 4
_TILES = 64  # partial results that a program adds at a time


@triton.jit
def moments_kernel(  # type: ignore[no-untyped-def]
    x_MRC, moments_MT3C, R, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Number, sum and squares about its own mean of one tile. Grid: tiles, blocks of channels, members."""
    tile, member = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row_R = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    channel_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = (row_R < R)[:, None] & (channel_C < C)[None, :]
    x = tl.load(x_MRC + member * R * C + row_R[:, None] * C + channel_C[None, :], mask=exists, other=0.0)
    place = member * tl.num_programs(0) + tile
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
    stats_M4C, z_MRC, R,
    C: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z = act(x scale + shift + residual). Grid: tiles, blocks of channels, members."""
    member = tl.program_id(2).to(tl.int64)
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists_C = channel_C < C
    exists = (row_R < R)[:, None] & exists_C[None, :]
    at = member * R * C + row_R[:, None] * C + channel_C[None, :]
    stats_4C = stats_M4C + member * (4 * C) + channel_C
    scale_C = tl.load(stats_4C + SCALE * C, mask=exists_C, other=0.0)
    shift_C = tl.load(stats_4C + SHIFT * C, mask=exists_C, other=0.0)
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    z = x * scale_C[None, :] + shift_C[None, :]
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
    z_MRC,  # tells where the ReLU passed; None: x does, there being no residual
    stats_M4C,
    g_MRC,  # or None: not wanted
    sums_MT2C, R,
    C: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over a tile of g and of g xhat, and g itself. Grid: tiles, blocks of channels, members."""
    tile, member = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row_R = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    channel_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists_C = channel_C < C
    exists = (row_R < R)[:, None] & exists_C[None, :]
    at = member * R * C + row_R[:, None] * C + channel_C[None, :]
    stats_4C = stats_M4C + member * (4 * C) + channel_C
    mean_C = tl.load(stats_4C + MEAN * C, mask=exists_C, other=0.0)
    inverse_C = tl.load(stats_4C + INVERSE * C, mask=exists_C, other=0.0)
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(dz_MRC + at, mask=exists, other=0.0).to(tl.float32)
    if dz2_MRC is not None:
        g += tl.load(dz2_MRC + at, mask=exists, other=0.0).to(tl.float32)
    if RELU:
        if z_MRC is not None:
            passed = tl.load(z_MRC + at, mask=exists, other=0.0).to(tl.float32) > 0.0
        else:
            scale_C = tl.load(stats_4C + SCALE * C, mask=exists_C, other=0.0)
            shift_C = tl.load(stats_4C + SHIFT * C, mask=exists_C, other=0.0)
            passed = x * scale_C[None, :] + shift_C[None, :] > 0.0
        g = tl.where(passed, g, 0.0)
    if g_MRC is not None:
        low = rounded(g, g_MRC.dtype.element_ty)
        tl.store(g_MRC + at, low, mask=exists)
        g = low.to(tl.float32)
    sums_2C = sums_MT2C + (member * tl.num_programs(0) + tile) * (2 * C) + channel_C
    tl.store(sums_2C, tl.sum(g, 0), mask=exists_C)
    tl.store(sums_2C + C, tl.sum(g * ((x - mean_C[None, :]) * inverse_C[None, :]), 0), mask=exists_C)


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
    R,
    C: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx; with RELU, g is dz and the ReLU's mask comes from x. Grid: tiles, blocks of channels, members."""
    member = tl.program_id(2).to(tl.int64)
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists_C = channel_C < C
    exists = (row_R < R)[:, None] & exists_C[None, :]
    at = member * R * C + row_R[:, None] * C + channel_C[None, :]
    stats_4C = stats_M4C + member * (4 * C) + channel_C
    gradients_2C = gradients_M2C + member * (2 * C) + channel_C
    mean_C = tl.load(stats_4C + MEAN * C, mask=exists_C, other=0.0)
    scale_C = tl.load(stats_4C + SCALE * C, mask=exists_C, other=0.0)
    slope_C = tl.load(gradients_2C + C, mask=exists_C, other=0.0)
    slope_C *= tl.load(stats_4C + INVERSE * C, mask=exists_C, other=0.0) * inverse_rows
    offset_C = tl.load(gradients_2C, mask=exists_C, other=0.0) * inverse_rows
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(g_MRC + at, mask=exists, other=0.0).to(tl.float32)
    if RELU:
        shift_C = tl.load(stats_4C + SHIFT * C, mask=exists_C, other=0.0)
        g = tl.where(x * scale_C[None, :] + shift_C[None, :] > 0.0, g, 0.0)
    dx = scale_C[None, :] * (g - offset_C[None, :] - (x - mean_C[None, :]) * slope_C[None, :])
    tl.store(dx_MRC + at, rounded(dx, dx_MRC.dtype.element_ty), mask=exists)


def _cut(x_MNHWC: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int, int]]:
    """The grid of a pass over activations, and (R, C, rows of a tile, channels of a tile)."""
    M, C = x_MNHWC.shape[0], x_MNHWC.shape[-1]
    R = x_MNHWC[0].numel() // C
    rows, columns = norm_tile(C)
    return (-(-R // rows), -(-C // columns), M), (R, C, rows, columns)


def moments(x_MNHWC: Tensor) -> Tensor:
    """[M, T, 3, C] float32: number, sum, and squares about its own mean, of each tile of contiguous x."""
    grid, (R, C, rows, columns) = _cut(x_MNHWC)
    made = x_MNHWC.new_empty((grid[2], grid[0], 3, C), dtype=torch.float32)
    with on(x_MNHWC.device):
        moments_kernel[grid](x_MNHWC, made, R, C, rows, columns, num_warps=_WARPS, enable_fp_fusion=True)
    return made


def settle(
    moments_MT3C: Tensor | None,
    weight_MC: Tensor,
    bias_MC: Tensor,
    running_mean_MC: Tensor,
    running_var_MC: Tensor,
    factor: float | Tensor,
    eps: float,
) -> Tensor:
    """stats_M4C (float32) from moments, with the running statistics updated in place; from these without moments.

    The parameters and running statistics are float32 with dense channels; the member strides are any. `factor` is the
    weight of the new statistics in the running ones: a number, or float32 [M]. The running variance is unbiased.
    """
    M, C = weight_MC.shape
    stats_M4C = weight_MC.new_empty((M, 4, C), dtype=torch.float32)
    columns = power_of_two(C, 8, 64)
    each = isinstance(factor, Tensor)
    with on(weight_MC.device):
        settle_kernel[(-(-C // columns), M)](
            moments_MT3C, weight_MC, bias_MC, running_mean_MC, running_var_MC, stats_M4C,
            weight_MC.stride(0), bias_MC.stride(0), running_mean_MC.stride(0), running_var_MC.stride(0),
            factor, 0 if moments_MT3C is None else moments_MT3C.shape[1],
            eps, C, each, _TILES, columns, num_warps=_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return stats_M4C


def apply(x_MNHWC: Tensor, residual_MNHWC: Tensor | None, stats_M4C: Tensor, relu: bool) -> Tensor:
    """z in x's dtype; x and the residual are contiguous."""
    grid, (R, C, rows, columns) = _cut(x_MNHWC)
    z = torch.empty_like(x_MNHWC)
    with on(z.device):
        apply_kernel[grid](
            x_MNHWC, residual_MNHWC, stats_M4C, z, R, C, relu, rows, columns, num_warps=_WARPS, enable_fp_fusion=True
        )
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
    """Partial sums [M, T, 2, C] (float32) of g and of g xhat, and g where `keep`. dz2 is added to dz.

    `z` tells where the ReLU passed; without it x does, which is right where there was no residual. All activations
    are contiguous and of one dtype.
    """
    grid, (R, C, rows, columns) = _cut(x_MNHWC)
    sums = x_MNHWC.new_empty((grid[2], grid[0], 2, C), dtype=torch.float32)
    g = torch.empty_like(x_MNHWC) if keep else None
    with on(sums.device):
        gradient_sums_kernel[grid](
            dz_MNHWC, dz2_MNHWC, x_MNHWC, z_MNHWC, stats_M4C, g, sums, R, C, relu, rows, columns,
            num_warps=_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return sums, g


def parameter_gradients(sums_MT2C: Tensor) -> Tensor:
    """[M, 2, C] float32: dbias and dweight."""
    M, T, _, C = sums_MT2C.shape
    gradients = sums_MT2C.new_empty((M, 2, C))
    columns = power_of_two(2 * C, 8, 64)
    with on(gradients.device):
        parameter_gradients_kernel[(-(-2 * C // columns), M)](
            sums_MT2C, gradients, T, C, _TILES, columns, num_warps=_WARPS, enable_fp_fusion=True
        )  # fmt: skip
    return gradients


def input_gradient(
    g_MNHWC: Tensor, x_MNHWC: Tensor, stats_M4C: Tensor, gradients_M2C: Tensor, relu: bool, training: bool
) -> Tensor:
    """dx from g, or from dz with `relu`: the mask then comes from x. In evaluation the statistics are constants."""
    grid, (R, C, rows, columns) = _cut(x_MNHWC)
    dx = torch.empty_like(x_MNHWC)
    with on(dx.device):
        input_gradient_kernel[grid](
            g_MNHWC, x_MNHWC, stats_M4C, gradients_M2C, dx, 1.0 / R if training else 0.0,
            R, C, relu, rows, columns, num_warps=_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return dx
