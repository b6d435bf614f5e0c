"""Sizes of a stacked convolution, checked once, and the tiles that its kernels cut it into.

Symbols: M members, N images, H W height and width of the input, CI and CO channels in and out, KH KW of the kernel,
OH OW height and width of the output; R = N * OH * OW rows of the implicit matrix product, K = KH * KW * CI its depth.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

MOST_ROWS = 2048
"""Rows that a program goes over, at most: those of a partial weight gradient."""


class Geometry:
    """The sizes of one convolution of M networks, from the shapes of x [M, N, H, W, CI] and w [M, CO, KH, KW, CI].

    Raises ValueError where they don't fit together.
    """

    def __init__(self, x_shape: Sequence[int], weight_shape: Sequence[int], stride: int, padding: int) -> None:
        self.x_shape, self.weight_shape = tuple(x_shape), tuple(weight_shape)
        self.stride, self.padding = stride, padding
        if [len(x_shape), len(weight_shape)] != [5, 5] or self.x_shape[::4] != self.weight_shape[::4]:
            raise ValueError(
                f"activations have shape {self.x_shape} and weights {self.weight_shape}; "
                "they need [M, N, H, W, CI] and [M, CO, KH, KW, CI]"
            )
        if stride < 1 or padding < 0:
            raise ValueError(f"stride is {stride} and padding {padding}; they need to be >= 1 and >= 0")
        self.M, self.N, self.H, self.W, self.CI = self.x_shape
        _, self.CO, self.KH, self.KW, _ = self.weight_shape
        self.OH = (self.H + 2 * padding - self.KH) // stride + 1
        self.OW = (self.W + 2 * padding - self.KW) // stride + 1
        if min(self.OH, self.OW) < 1:
            raise ValueError(
                f"a {self.KH} x {self.KW} kernel does not fit into {self.H} x {self.W} images with padding {padding}"
            )
        self.R = self.N * self.OH * self.OW
        self.K = self.KH * self.KW * self.CI
        self.y_shape = (self.M, self.N, self.OH, self.OW, self.CO)
        # Kernels count rows in 32 bits, and values from the first image of a program's MOST_ROWS rows.
        places = min(self.OH * self.OW, -(-self.H // stride) * -(-self.W // stride))
        values = (MOST_ROWS // places + 2) * max(self.H * self.W * self.CI, self.OH * self.OW * self.CO)
        if max(self.N * self.H * self.W + MOST_ROWS, self.R + MOST_ROWS, values) >= 2**31:
            raise ValueError(f"activations of {self.N} images have 2^31 places or more; use smaller batches")

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """H, W, CI, CO, OH, OW, KH, KW, stride and padding: constants of every kernel, in this order."""
        return (
            self.H, self.W, self.CI, self.CO, self.OH, self.OW, self.KH, self.KW, self.stride, self.padding,
        )  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """What one program computes: a rows x columns product, `depth` deep a step; warps and pipeline stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def power_of_two(number: int, low: int, high: int) -> int:
    """The lowest power of two from `number` up, within low .. high."""
    return max(low, min(high, 1 << max(0, number - 1).bit_length()))


def product_tile(channels_in: int, channels_out: int, taps: int, itemsize: int) -> Tile:
    """The tile of the forward product, and with channels swapped of the input gradient's.

    Like all tiles here it depends on a member's own shapes alone, never on M: a member's sums are the same in every
    population. Every program reads all weights of its columns, hence many rows. `itemsize` is the activations', in
    bytes. Neighbouring taps share the first-level cache, which asynchronous copies
    bypass: so only products with many weights have stages.
    """
    columns = power_of_two(channels_out, 16, 64)
    depth = 64 if channels_in % 64 == 0 else power_of_two(taps * channels_in, 16, 32)
    warps, stages = (8, 2) if channels_in * channels_out >= 2048 else (4, 1)
    rows = min(256, 2048 * warps // columns)  # at most 64 sums a thread
    if itemsize > 2:  # float32 products are multiply-adds: deeper tiles would not fit the registers
        return Tile(min(128, rows), columns, min(32, depth), warps, 1)
    return Tile(rows, columns, depth, warps, stages)


def weight_tile(channels_in: int, channels_out: int, taps: int, itemsize: int) -> Tile:
    """The tile of the weight gradient: `rows` of activations a step, sums of depth x columns."""
    columns = power_of_two(channels_out, 16, 64)
    depth = power_of_two(taps * channels_in, 16, 128 if channels_in % 128 == 0 else 64)
    stages = 2 if columns == 64 and itemsize <= 2 else 1
    return Tile(128 if channels_in < 32 else 64, columns, depth, 8 if depth == 128 else 4, stages)


def chunk_rows(geometry: Geometry, tile: Tile) -> int:
    """Rows that one partial weight gradient sums over.

    Enough that partial sums move less memory than activations, but so few that one member has 64 programs for the
    SMs to share, where chunks of 512 rows can give it so many.
    """
    g = geometry
    blocks = -(-g.K // tile.depth) * -(-g.CO // tile.columns)
    chunk = power_of_two(32 * max(g.CI, g.CO), 512, MOST_ROWS)
    while chunk > 512 and blocks * -(-g.R // chunk) < 64:
        chunk //= 2
    return chunk


def stores_activation(geometry: Geometry) -> bool:
    """Whether act(batch_norm(x)) before a convolution is stored, rather than made where the convolution reads x.

    By the roofline of benchmarks.kernels: a convolution of several taps reads each value once a tap, and would make
    it as often; storing it moves 4 bytes a value, and costs less. FASTWI_PROLOGUE=fused or stored, for measurements.
    """
    return {"fused": False, "stored": True}.get(os.environ.get("FASTWI_PROLOGUE", ""), geometry.KH * geometry.KW > 1)


def norm_tile(channels: int) -> tuple[int, int]:
    """Rows and channels of one program of a pass over activations: 4,096 values, 32 a thread."""
    columns = power_of_two(channels, 8, 64)
    return 4096 // columns, columns


def sum_block(tiles: int, values: int, most: int) -> tuple[int, int]:
    """Tiles and values of each that a program of a sum over tiles adds at a time: `most` at most, in float64."""
    rows = power_of_two(tiles, 1, 128)
    return rows, power_of_two(values, 8, most // rows)
