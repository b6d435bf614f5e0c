"""Batch norms of M networks at once, with the residual sum and ReLU behind them.

Training (Ioffe & Szegedy 2015), over the R = N * H * W values of each channel of each member:

    z = act(x scale + shift + residual),   scale = weight inv,  shift = bias - mean scale,  inv = 1 / sqrt(var + eps)
    g = dz where z > 0;   dbias = sum g;   dweight = sum g xhat;   dresidual = g;   xhat = (x - mean) inv
    dx = scale (g - (dbias + xhat dweight) / R)

In evaluation mean and var are the running ones, so dx = scale g. Statistics are in float32 within a tile, about the
tile's own mean, and in float64 over tiles (Chan, Golub & LeVeque 1983). No atomics: results are the same each time.
By Triton on a GPU. Elsewhere by torch, in float32 (float64 for such inputs), rounded once.

Memory traffic in bytes a value of x, for bf16: statistics 2 (0 where the convolution made them), z 4, gradients' sums
4, dx 6; with a residual 2 more for z, and 4 more for the sums.

Symbols: M members, R rows (images and places), C channels, T tiles. stats_M4C: mean, inv, scale and shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastwi.kernels import gpu
from fastwi.kernels.gpu import rounded, row_alignment, tl, triton
from fastwi.kernels.stacked_geometry import norm_tile, sum_block

MEAN, INVERSE, SCALE, SHIFT = (tl.constexpr(row) for row in range(4))  # rows of stats_M4C
_WARPS = 8


def wide(x: Tensor) -> torch.dtype:
    """The dtype that torch computes in."""
    return torch.promote_types(x.dtype, torch.float32)


@dataclass(frozen=True)
class Place:
    """Where the backward pass writes a parameter's gradient in place of returning it: `rows`, float32 [M, *shape].

    Each member's values are dense. `written` has the names of all parameters whose gradients were, in this step.
    """

    name: str
    rows: Tensor
    written: set[str]

    def take(self) -> Tensor:
        """The rows, to be written now. Raises RuntimeError for a second gradient: it would replace the first."""
        if self.name in self.written:
            raise RuntimeError(f"parameter {self.name!r} has a second gradient, which would replace its first")
        self.written.add(self.name)
        return self.rows


@dataclass(frozen=True)
class Norm:
    """A batch norm of M networks, and the ReLU behind it. Raises ValueError for wrong shapes or strides.

    Weight, bias and running statistics are [M, C] in float32 with dense channels and any member strides; weight and
    bias also in 16 bits. `factor` is the weight of a batch's statistics: a number, or float32 [M].
    """

    weight_MC: Tensor
    bias_MC: Tensor
    running_mean_MC: Tensor
    running_var_MC: Tensor
    training: bool = True
    factor: float | Tensor = 0.1
    eps: float = 1e-5
    relu: bool = True
    gradients: "tuple[Place, Place] | None" = None
    """Where those of weight and bias go; None: autograd returns them."""

    def __post_init__(self) -> None:
        tensors = (self.weight_MC, self.bias_MC, self.running_mean_MC, self.running_var_MC)
        if len({tuple(tensor.shape) for tensor in tensors}) > 1 or any(tensor.stride(-1) != 1 for tensor in tensors):
            shapes = ", ".join(f"{tuple(tensor.shape)} with strides {tensor.stride()}" for tensor in tensors)
            raise ValueError(
                f"weight, bias, running mean and variance need one shape and dense channels, not {shapes}"
            )

    def settle(self, x_MNHWC: Tensor, moments_MT3C: Tensor | None) -> Tensor:
        """stats_M4C for x. In training this updates the running statistics, the variance unbiased.

        `moments` are x's, where they are known.
        """
        M, C = self.weight_MC.shape
        if (x_MNHWC.shape[0], x_MNHWC.shape[-1]) != (M, C):
            raise ValueError(f"activations {tuple(x_MNHWC.shape)} don't go with a norm of {(M, C)}")
        rows = x_MNHWC[0, ..., 0].numel()
        if self.training and rows < 2:
            raise ValueError(f"batch norm in training needs 2 values a channel or more, not {rows}")
        if not self.training:
            moments_MT3C = None
        elif moments_MT3C is None:
            moments_MT3C = moments(x_MNHWC)
        weight_MC, bias_MC = (value.detach().to(wide(value)) for value in (self.weight_MC, self.bias_MC))
        mean_MC, var_MC = self.running_mean_MC, self.running_var_MC
        if not gpu.by_triton(weight_MC):
            return self._settle_by_torch(weight_MC, bias_MC, moments_MT3C)
        stats_M4C = weight_MC.new_empty((M, 4, C), dtype=torch.float32)
        tiles = 0 if moments_MT3C is None else moments_MT3C.shape[1]
        rows, columns = sum_block(tiles, C, 1024)  # 4 a thread, of three sums
        with gpu.on(weight_MC.device):
            settle_kernel[(-(-C // columns), M)](
                moments_MT3C, weight_MC, bias_MC, mean_MC, var_MC, stats_M4C,
                weight_MC.stride(0), bias_MC.stride(0), mean_MC.stride(0), var_MC.stride(0),
                self.factor, tiles, self.eps, C, isinstance(self.factor, Tensor), rows, columns,
                num_warps=_WARPS, enable_fp_fusion=True,
            )  # fmt: skip
        return stats_M4C

    def _settle_by_torch(self, weight_MC: Tensor, bias_MC: Tensor, moments_MT3C: Tensor | None) -> Tensor:
        mean_MC, var_MC = self.running_mean_MC, self.running_var_MC
        if moments_MT3C is not None:
            count_MTC, total_MTC, squares_MTC = moments_MT3C.double().unbind(2)
            rows_MC = count_MTC.sum(1)
            mean_MC = total_MTC.sum(1) / rows_MC
            apart_MTC = total_MTC / count_MTC - mean_MC[:, None]
            var_MC = (squares_MTC + count_MTC * apart_MTC.square()).sum(1) / rows_MC
            unbiased_MC = var_MC * rows_MC / (rows_MC - 1)
            share = self.factor[:, None] if isinstance(self.factor, Tensor) else self.factor
            for running_MC, batch_MC in ((self.running_mean_MC, mean_MC), (self.running_var_MC, unbiased_MC)):
                # By data, as torch's own: to autograd the statistics of other layers would change with their matrix.
                running_MC.data.copy_(running_MC + (batch_MC - running_MC) * share)
        inverse_MC = (var_MC.double() + self.eps).rsqrt()
        scale_MC = weight_MC * inverse_MC
        stats_M4C = torch.stack([mean_MC.double(), inverse_MC, scale_MC, bias_MC - mean_MC * scale_MC], 1)
        return stats_M4C.to(wide(weight_MC))


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


def sum_tiles(partial_MT: Tensor, rows: Sequence[Tensor] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Contiguous [M, T, *shape] to [M, *shape] in its dtype: the sum over tiles, in float64.

    `rows` are float32 with each member's values dense, and get the total too, rounded to `dtype` on the way. One has
    its shape, and is what is returned; two are views of one matrix, and each gets a half.
    """
    M, T, *shape = partial_MT.shape
    if not gpu.by_triton(partial_MT) or (T == 1 and not rows):
        total_M = partial_MT[:, 0] if T == 1 else partial_MT.double().sum(1).to(partial_MT.dtype)
        for row, part in zip(rows, [total_M] if len(rows) == 1 else total_M.unbind(1), strict=False):
            row.copy_(part.to(dtype))
        return rows[0] if len(rows) == 1 else total_M
    total_M = rows[0] if len(rows) == 1 else partial_MT.new_empty((M, *shape))
    E = total_M[0].numel()
    tiles, columns = sum_block(T, E, 4096)
    row_M = rows[0] if rows else None
    stride, apart = (rows[0].stride(0), (rows[-1].data_ptr() - rows[0].data_ptr()) // 4) if rows else (0, 0)
    with gpu.on(partial_MT.device):
        sum_tiles_kernel[(-(-E // columns), M)](
            partial_MT, None if len(rows) == 1 else total_M, row_M, stride, apart, T, E, E // max(1, len(rows)),
            getattr(tl, str(dtype).removeprefix("torch.")), row_alignment(16, *rows), tiles, columns,
            num_warps=_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return total_M


def weight_gradient(partial_MT: Tensor, place: Place | None, dtype: torch.dtype) -> Tensor | None:
    """The sum over tiles in `dtype`, for autograd; None where it was written to a place."""
    if place is None:
        return sum_tiles(partial_MT).to(dtype)
    sum_tiles(partial_MT, [place.take()], dtype)
    return None


def parameter_gradients(partial_MT2C: Tensor, norm: Norm) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sums over tiles [M, 2, C] for `input_gradient`; gradients of weight and bias, None where they have places."""
    if norm.gradients is None:
        sums_M2C = sum_tiles(partial_MT2C)
        return sums_M2C, sums_M2C[:, 1], sums_M2C[:, 0]
    weight, bias = norm.gradients
    return sum_tiles(partial_MT2C, (bias.take(), weight.take())), None, None


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
    start = tl.program_id(0) * BLOCK_R
    row_R = start + tl.arange(0, BLOCK_R)
    channel_C = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = (row_R < R)[:, None] & (channel_C < C)[None, :]
    first = (tl.program_id(2).to(tl.int64) * R + start) * C  # a member may have 2^31 values or more
    at = first + tl.arange(0, BLOCK_R)[:, None] * C + channel_C[None, :]
    return row_R, channel_C, exists, at


@triton.jit
def load_row(stats_M4C, member, ROW: tl.constexpr, channel_C, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """One of mean, inv, scale and shift of the channels of a member, [1, C]."""
    return tl.load(stats_M4C + member * (4 * C) + ROW * C + channel_C, mask=channel_C < C, other=0.0)[None, :]


@triton.jit
def normed(x, stats_M4C, member, channel_C, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """x scale + shift."""
    scale = load_row(stats_M4C, member, SCALE, channel_C, C)
    return x * scale + load_row(stats_M4C, member, SHIFT, channel_C, C)


@triton.jit
def standardised(x, stats_M4C, member, channel_C, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """xhat."""
    mean = load_row(stats_M4C, member, MEAN, channel_C, C)
    return (x - mean) * load_row(stats_M4C, member, INVERSE, channel_C, C)


@triton.jit
def store_gradient_sums(g, xhat, sums_MT2C, member, channel_C, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """The program's sums of g and of g xhat over the rows of its tile."""
    sums_2C = sums_MT2C + (member * tl.num_programs(0) + tl.program_id(0)) * (2 * C) + channel_C
    tl.store(sums_2C, tl.sum(g, 0), mask=channel_C < C)
    tl.store(sums_2C + C, tl.sum(g * xhat, 0), mask=channel_C < C)


@triton.jit
def store_moments(y, inside_R, moments_MT3C, member, channel_C, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Number, sum, and sum of squares about the tile's own mean, of each channel of a tile y [R, C] in float32."""
    count = tl.sum(inside_R.to(tl.float32), 0)
    total_C = tl.sum(tl.where(inside_R[:, None], y, 0.0), 0)
    apart = tl.where(inside_R[:, None], y - (total_C / count)[None, :], 0.0)
    moments_3C = moments_MT3C + (member * tl.num_programs(0) + tl.program_id(0)) * (3 * C) + channel_C
    tl.store(moments_3C, total_C * 0.0 + count, mask=channel_C < C)
    tl.store(moments_3C + C, total_C, mask=channel_C < C)
    tl.store(moments_3C + 2 * C, tl.sum(apart * apart, 0), mask=channel_C < C)


@triton.jit
def moments_kernel(  # type: ignore[no-untyped-def]
    x_MRC, moments_MT3C, R, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Number, sum and squares about its own mean of one tile."""
    row_R, channel_C, exists, at = _places(R, C, BLOCK_R, BLOCK_C)
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    store_moments(x, row_R < R, moments_MT3C, tl.program_id(2).to(tl.int64), channel_C, C)


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
        count = tl.zeros((BLOCK_T, BLOCK_C), tl.float64)
        total = tl.zeros((BLOCK_T, BLOCK_C), tl.float64)
        squares = tl.zeros((BLOCK_T, BLOCK_C), tl.float64)  # about 0
        for start in range(0, T, BLOCK_T):
            tile_T = start + tl.arange(0, BLOCK_T)
            exists = (tile_T < T)[:, None] & exists_C[None, :]
            at = moments_MT3C + (member * T + tile_T[:, None]) * (3 * C) + channel_C[None, :]
            number = tl.load(at, mask=exists, other=0.0).to(tl.float64)
            tile_total = tl.load(at + C, mask=exists, other=0.0).to(tl.float64)
            count += number
            total += tile_total
            squares += tl.load(at + 2 * C, mask=exists, other=0.0).to(tl.float64)
            squares += tile_total * tile_total / tl.maximum(number, 1.0)
        rows = tl.maximum(tl.sum(count, 0), 1.0)  # channels that don't exist have none
        mean = tl.sum(total, 0) / rows
        var = tl.sum(squares, 0) / rows - mean * mean
        var = tl.where(var < 0.0, 0.0, var)  # by rounding; keeps NaN
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
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    z = normed(x, stats_M4C, tl.program_id(2).to(tl.int64), channel_C, C)
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
            z = tl.load(z_MRC + at, mask=exists, other=0.0).to(tl.float32)
        else:
            z = normed(x, stats_M4C, member, channel_C, C)
        g = tl.where(z > 0.0, g, 0.0)
    if g_MRC is not None:
        low = rounded(g, g_MRC.dtype.element_ty)
        tl.store(g_MRC + at, low, mask=exists)
        g = low.to(tl.float32)
    xhat = standardised(x, stats_M4C, member, channel_C, C)
    store_gradient_sums(g, xhat, sums_MT2C, member, channel_C, C)


@triton.jit
def sum_tiles_kernel(  # type: ignore[no-untyped-def]
    partial_MTE,
    total_ME,  # or None
    row_MF,  # the total again, in float32; or None
    row_stride,  # of members
    part_stride,  # of parts of F = PART values
    T, E,
    PART: tl.constexpr, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sums over tiles, in float64. Grid: blocks of E, members."""
    member = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float64)
    for start in range(0, T, BLOCK_T):
        tile_T = start + tl.arange(0, BLOCK_T)
        at = partial_MTE + (member * T + tile_T[:, None]) * E + e[None, :]
        total += tl.load(at, mask=(tile_T < T)[:, None] & (e < E)[None, :], other=0.0).to(tl.float64)
    total_E = tl.sum(total, 0).to(tl.float32)
    if total_ME is not None:
        tl.store(total_ME + member * E + e, total_E, mask=e < E)
    if row_MF is not None:
        row_E = tl.multiple_of(row_MF + member * row_stride, ALIGNED)
        tl.store(row_E + e // PART * part_stride + e % PART, rounded(total_E, ELEMENT).to(tl.float32), mask=e < E)


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
    dbias = tl.load(gradients_2C, mask=channel_C < C, other=0.0)[None, :] * inverse_rows
    dweight = tl.load(gradients_2C + C, mask=channel_C < C, other=0.0)[None, :] * inverse_rows
    x = tl.load(x_MRC + at, mask=exists, other=0.0).to(tl.float32)
    g = tl.load(g_MRC + at, mask=exists, other=0.0).to(tl.float32)
    if RELU:
        g = tl.where(normed(x, stats_M4C, member, channel_C, C) > 0.0, g, 0.0)
    xhat = standardised(x, stats_M4C, member, channel_C, C)
    dx = load_row(stats_M4C, member, SCALE, channel_C, C) * (g - dbias - xhat * dweight)
    tl.store(dx_MRC + at, rounded(dx, dx_MRC.dtype.element_ty), mask=exists)
