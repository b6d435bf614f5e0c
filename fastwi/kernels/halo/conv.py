"""Convolutions by halo tiles, with the interface of `fastwi.kernels.stacked_conv`; on a CPU they go there.

    y[m, n, h, w, o] = sum over kh, kw, i of a[m, n, h + kh - 1, w + kw - 1, i] w[m, o, kh, kw, i]

Here 3 x 3 kernels of stride 1 and padding 1 on 16, 32 or 64 channels in and out, in bf16. An input tile with its halo
is read once, batch norm and ReLU are applied to it once, and nine shifted products are made of it. Each tile's sums
are in a fixed order: a member's results are the same each time, whatever other members are.

Memory traffic in bytes a value of y: 4, and 4 more with a residual and z. Rows of halos come from caches.

Symbols: those of fastwi.kernels.stacked_geometry.
"""

import torch
from torch import Tensor

from fastwi.kernels import stacked_conv, stacked_norm
from fastwi.kernels.halo.build import MULTIPROCESSORS, Kernel, aligned_weights, fits, launch, runs_here
from fastwi.kernels.stacked_geometry import Geometry, power_of_two

_WIDEST = 64  # images; wider tiles would not fit into shared memory
_CTAS = {16: 4, 32: 3, 64: 2}  # of a multiprocessor: what registers and shared memory leave room for
_WAVES = 2


def forward(
    x_MNHWI: Tensor,
    weight_MOHWI: Tensor,
    geometry: Geometry,
    stats_M4I: Tensor | None,
    relu: bool,
    statistics: bool,
    residual_MNHWI: Tensor | None = None,
    z_MNHWI: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See `stacked_conv.forward`. A residual is added before the ReLU, and what is convolved is written to z.

    Of convolutions that `fastwi.kernels.halo.backward.takes`.
    """
    g, kernel = geometry, None
    if runs_here(x_MNHWI.device):
        optional = (stats_M4I, residual_MNHWI, z_MNHWI)
        prologue, residual, stored = (each is not None for each in optional)
        kernel = forward_kernel(g, prologue, relu, statistics, residual, stored)
    if kernel is None or not fits(kernel, x_MNHWI.device):
        if z_MNHWI is not None and stats_M4I is not None:
            x_MNHWI = z_MNHWI.copy_(stacked_norm.apply(x_MNHWI, residual_MNHWI, stats_M4I, relu))
            stats_M4I, relu = None, False
        return stacked_conv.forward(x_MNHWI, weight_MOHWI, geometry, stats_M4I, relu, statistics)
    weight = aligned_weights(weight_MOHWI, x_MNHWI.dtype)
    tiles = tiles_of(kernel, g.N)
    y = torch.empty_like(x_MNHWI)
    moments = y.new_empty((g.M, tiles, 3, g.CO), dtype=torch.float32) if statistics else None
    # Any number of CTAs gives the same numbers: each keeps its weights and takes every so many-th tile.
    ctas = max(1, min(tiles, most_ctas(g.CI) // g.M))
    launch(
        kernel, (ctas, g.M, 1), x_MNHWI, weight, y, stats_M4I, moments, residual_MNHWI, z_MNHWI, weight.stride(0), g.N
    )  # fmt: skip
    return y, moments


def forward_kernel(
    geometry: Geometry, prologue: bool, relu: bool, statistics: bool, residual: bool = False, stored: bool = False
) -> Kernel:
    """The forward kernel for such images. A tile has all their columns, so that only rows overlap."""
    g, channels = geometry, geometry.CI
    columns = power_of_two(g.W, 8, _WIDEST)
    images = max(1, 16 // columns)
    groups = max(1, channels // 32)
    rows = 4
    while rows < min(g.H, 16 if channels == 32 else 8) and rows // 4 * (images * columns // 16) * groups < 4:
        rows *= 2
    threads = 32 * (rows // 4) * (images * columns // 16) * groups
    pixels = images * (rows + 2) * (columns + 2)
    shared = pixels * (2 * channels + 16) + channels * (18 * channels + 16) + threads // 32 * 12 * min(channels, 32)
    constants = {
        "C": channels, "H": g.H, "W": g.W, "TILE_H": rows, "TILE_W": columns, "IMAGES": images,
        "WHOLE_IMAGES": int(g.N % images == 0), "CTAS": _CTAS[channels],
        "PROLOGUE": int(prologue), "RELU": int(relu), "STATISTICS": int(statistics),
        "RESIDUAL": int(residual), "STORED": int(stored),
    }  # fmt: skip
    return Kernel("forward.cu", "forward", threads, shared, tuple(constants.items()))


def most_ctas(channels: int) -> int:
    """CTAs of all members from which on each has several tiles, so that it loads the weights once for them."""
    return _WAVES * _CTAS[channels] * MULTIPROCESSORS


def tiles_of(kernel: Kernel, images: int) -> int:
    """Tiles of a member with so many images."""
    size = dict(kernel.constants)
    return -(-images // size["IMAGES"]) * -(-size["H"] // size["TILE_H"])
