"""Weight gradients of the convolutions of M networks at once.

    dw[m, o, kh, kw, i] = sum over n, p, q of a[m, n, p s + kh - pad, q s + kw - pad, i] dy[m, n, p, q, o]

with a as in fastwi.kernels.stacked_conv. By torch member by member, or by Triton on a GPU. There the sum over rows
r = (n, p, q) is cut into chunks: each program sums one chunk in float32, for some k = (kh, kw, i) and o; a second
kernel sums the chunks, in order. Chunks depend on a member's own shapes alone, so its gradient is the same to the bit
in every population, and each time.

Memory traffic in bytes a value of dy, for bf16 and as many values in as out: 4 (x and dy read), and for the partial
sums 8 K / CHUNK (2.25 at 16 to 64 channels), mostly in the second-level cache. Programs of one chunk share what
they read.

Symbols: those of fastwi.kernels.stacked_geometry. S chunks, E = CO * K weights of a member.
"""

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fastwi.kernels import gpu, stacked_norm
from fastwi.kernels.gpu import tl, triton
from fastwi.kernels.stacked_conv import by_member, images, launch, patches, precision, product
from fastwi.kernels.stacked_geometry import Geometry, chunk_rows, weight_tile

_SUM_BLOCK = 512


def weight_gradient(
    x_MNHWI: Tensor, dy_MNPQO: Tensor, geometry: Geometry, stats_M4I: Tensor | None, relu: bool
) -> Tensor:
    """dw [M, CO, KH, KW, CI] in float32 (float64 for such inputs). x and dy are contiguous."""
    g = geometry
    if not gpu.by_triton(x_MNHWI):
        a_MNHWI, stride = x_MNHWI, g.stride
        if stats_M4I is not None:
            a_MNHWI = stacked_norm.apply(x_MNHWI, None, stats_M4I, relu)
        if (g.KH, g.KW, g.padding) == (1, 1, 0):  # see fastwi.kernels.pointwise
            a_MNHWI, stride = a_MNHWI[:, :, ::stride, ::stride], 1
        shape = (g.CO, g.CI, g.KH, g.KW)
        dw_MOIHW = by_member(
            lambda a_NHWI, dy_NPQO: conv2d_weight(images(a_NHWI), shape, images(dy_NPQO), stride, g.padding),
            a_MNHWI, dy_MNPQO,
        )  # fmt: skip
        return dw_MOIHW.permute(0, 1, 3, 4, 2).contiguous()
    tile, chunk = weight_tile(g.CI, g.CO, g.KH * g.KW, x_MNHWI.element_size()), chunk_rows(g.CI, g.CO)
    chunks = -(-g.R // chunk)
    out = x_MNHWI.new_empty(g.weight_shape, dtype=torch.float32)
    partial = out if chunks == 1 else out.new_empty((g.M, chunks, *g.weight_shape[1:]))
    grid = (-(-g.K // tile.depth) * -(-g.CO // tile.columns), chunks, g.M)
    launch(
        weight_gradient_kernel, grid, tile, out.device, x_MNHWI, dy_MNPQO, partial, stats_M4I, partial.stride(0),
        g.CO * g.K, g.R, *g.kernel_sizes, relu, precision(x_MNHWI.dtype), chunk,
    )  # fmt: skip
    if chunks > 1:
        with gpu.on(out.device):
            sum_chunks_kernel[(-(-g.CO * g.K // _SUM_BLOCK), g.M)](
                partial, out, chunks, g.CO * g.K, BLOCK=_SUM_BLOCK, num_warps=4, enable_fp_fusion=True
            )
    return out


@triton.jit
def weight_gradient_kernel(  # type: ignore[no-untyped-def]
    x_MNHWI, dy_MRO, partial_MSE,
    stats_M4I,  # None: no prologue
    member_stride, chunk_stride,  # of partial_MSE, in elements
    R,
    H: tl.constexpr, W: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_K x BLOCK_O of one chunk's sum. Grid: blocks of k and of o, chunks of CHUNK rows, members."""
    pid, chunk, member = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    BLOCKS_K: tl.constexpr = (KH * KW * CI + BLOCK_K - 1) // BLOCK_K
    k_start = pid % BLOCKS_K * BLOCK_K
    out_O = pid // BLOCKS_K * BLOCK_O + tl.arange(0, BLOCK_O)
    x_NHWI = x_MNHWI + member * (R // (OH * OW) * (H * W * CI))
    dy_RO = dy_MRO + member * R * CO
    stats_4I = None
    if stats_M4I is not None:
        stats_4I = stats_M4I + member * (4 * CI)
    sums = tl.zeros((BLOCK_K, BLOCK_O), tl.float32)
    for row_start in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, R), BLOCK_R):
        row_R = row_start + tl.arange(0, BLOCK_R)
        inside_R = row_R < R
        image_R = row_R // (OH * OW)
        top_R = row_R // OW % OH * STRIDE - PADDING
        left_R = row_R % OW * STRIDE - PADDING
        a = patches(
            x_NHWI, stats_4I, image_R, top_R, left_R, inside_R, k_start, H, W, CI, KH, KW, RELU, BLOCK_K
        )  # fmt: skip
        exists = inside_R[:, None] & (out_O < CO)[None, :]
        dy = tl.load(dy_RO + row_R[:, None] * CO + out_O[None, :], mask=exists, other=0.0)
        sums = product(tl.trans(a), dy, sums, PRECISION)
    k = k_start + tl.arange(0, BLOCK_K)
    at = member * member_stride + chunk * chunk_stride + out_O[None, :] * (KH * KW * CI) + k[:, None]
    tl.store(partial_MSE + at, sums, mask=(k < KH * KW * CI)[:, None] & (out_O < CO)[None, :])


@triton.jit
def sum_chunks_kernel(  # type: ignore[no-untyped-def]
    partial_MSE, out_ME, S, E, BLOCK: tl.constexpr
):
    """out[m, e] = sum over chunks, first to last, in float32."""
    member = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    partial_E = partial_MSE + member * S * E + e
    total = tl.zeros((BLOCK,), tl.float32)
    for chunk in range(0, S):
        total += tl.load(partial_E + chunk * E, mask=e < E, other=0.0)
    tl.store(out_ME + member * E + e, total, mask=e < E)
