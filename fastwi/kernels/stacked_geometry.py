"""Sizes of a stacked convolution, checked once, and the tiles that its kernels cut it into.

Symbols: M members, N images, H W height and width of the input, CI and CO channels in and out, KH KW of the kernel,
OH OW height and width of the output; R = N * OH * OW rows of the implicit matrix product, K = KH * KW * CI its depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Geometry:
    """The sizes of one convolution of M networks."""

    M: int
    N: int
    R: int
    K: int
    H: int
    W: int
    CI: int
    CO: int
    OH: int
    OW: int
    KH: int
    KW: int
    stride: int
    padding: int
    x_shape: tuple[int, ...]  # [M, N, H, W, CI]
    y_shape: tuple[int, ...]  # [M, N, OH, OW, CO]
    weight_shape: tuple[int, ...]  # [M, CO, KH, KW, CI]

    @classmethod
    def of(cls, x_shape: Sequence[int], weight_shape: Sequence[int], stride: int, padding: int) -> "Geometry":
        """From the shapes of x [M, N, H, W, CI] and of the weights [M, CO, KH, KW, CI].

        Raises ValueError where they don't fit together.
        """
        x_shape, weight_shape = tuple(x_shape), tuple(weight_shape)
        if [len(x_shape), len(weight_shape)] != [5, 5] or x_shape[::4] != weight_shape[::4]:
            raise ValueError(
                f"activations have shape {x_shape} and weights {weight_shape}; "
                "they need [M, N, H, W, CI] and [M, CO, KH, KW, CI]"
            )
        if stride < 1 or padding < 0:
            raise ValueError(f"stride is {stride} and padding {padding}; they need to be >= 1 and >= 0")
        M, N, H, W, CI = x_shape
        CO, KH, KW = weight_shape[1:4]
        OH, OW = ((side + 2 * padding - window) // stride + 1 for side, window in ((H, KH), (W, KW)))
        if min(OH, OW) < 1:
            raise ValueError(f"a {KH} x {KW} kernel does not fit into {H} x {W} images with {padding} of padding")
        R, K = N * OH * OW, KH * KW * CI
        if max(N * H * W * CI, R * CO) >= 2**31:
            raise ValueError(f"a member's activations of {N} images hold 2^31 values or more; use smaller batches")
        y_shape = (M, N, OH, OW, CO)
        return cls(M, N, R, K, H, W, CI, CO, OH, OW, KH, KW, stride, padding, x_shape, y_shape, weight_shape)

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


# Tiles depend on a member's own shapes alone, never on M: a member's sums are the same in every population. Rows are
# many, since each program reads all weights: at 64 channels they weigh 74 kB in bf16, 256 rows 64 kB in and out.
# A step's loads of neighbouring taps overlap and shall hit the first-level cache, which asynchronous copies of 16
# bytes go past: hence one stage where other programs of the multiprocessor hide the latency.
_PRODUCTS = {  # (channels summed over, channels out)
    (3, 16): Tile(256, 16, 32, 4, 1),
    (3, 64): Tile(128, 64, 32, 4, 1),
    (16, 16): Tile(256, 16, 32, 4, 1),
    (16, 32): Tile(256, 32, 32, 4, 1),
    (32, 16): Tile(256, 16, 32, 4, 1),
    (32, 32): Tile(256, 32, 32, 4, 1),
    (32, 64): Tile(256, 64, 32, 8, 2),
    (64, 32): Tile(256, 32, 64, 8, 2),
    (64, 64): Tile(256, 64, 64, 8, 2),
}
_WEIGHTS = {  # (channels in, channels out): `rows` of activations a step, an accumulator of depth x columns
    (3, 16): Tile(128, 16, 32, 4, 1),
    (16, 16): Tile(128, 16, 64, 4, 1),
    (16, 32): Tile(128, 32, 64, 4, 1),
    (32, 32): Tile(64, 32, 64, 4, 1),
    (32, 64): Tile(64, 64, 64, 4, 2),
    (64, 64): Tile(64, 64, 128, 8, 2),
}


def power_of_two(number: int, low: int, high: int) -> int:
    """The lowest power of two from `number` up, within low .. high."""
    return max(low, min(high, 1 << max(0, number - 1).bit_length()))


def product_tile(channels_in: int, channels_out: int, taps: int, itemsize: int) -> Tile:
    """The tile of the forward product, and with channels swapped of the input gradient's.

    `itemsize` is the activations', in bytes. Values of 4 bytes take twice the registers and shared memory.
    """
    if itemsize > 2:
        tile = product_tile(channels_in, channels_out, taps, 2)
        # In float32 products are multiply-adds of its own: deeper tiles would not fit the registers.
        return replace(tile, rows=min(128, tile.rows), depth=min(32, tile.depth), stages=1)
    if taps > 1 and (channels_in, channels_out) in _PRODUCTS:
        return _PRODUCTS[channels_in, channels_out]
    whole = [depth for depth in (64, 32, 16) if channels_in % depth == 0]
    depth = whole[0] if whole else power_of_two(taps * channels_in, 16, 64)
    return Tile(128, power_of_two(channels_out, 16, 64), depth, 4, 2)


def weight_tile(channels_in: int, channels_out: int, taps: int, itemsize: int) -> Tile:
    """The tile of the weight gradient; `itemsize` is the activations', in bytes."""
    if itemsize > 2:
        return replace(weight_tile(channels_in, channels_out, taps, 2), stages=1)
    if taps > 1 and (channels_in, channels_out) in _WEIGHTS:
        return _WEIGHTS[channels_in, channels_out]
    return Tile(64, power_of_two(channels_out, 16, 64), power_of_two(taps * channels_in, 16, 64), 4, 2)


def chunk_rows(channels_in: int, channels_out: int) -> int:
    """Rows that one partial weight gradient sums over: enough that partials move less memory than activations."""
    return power_of_two(32 * max(channels_in, channels_out), 512, 2048)


def norm_tile(channels: int) -> tuple[int, int]:
    """Rows and channels of one program of a pass over activations: 4,096 values, 32 a thread."""
    columns = power_of_two(channels, 8, 64)
    return 4096 // columns, columns
