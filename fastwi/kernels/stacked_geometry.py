"""Sizes of a stacked convolution, checked once, and the tiles that its kernels cut it into.

Symbols: M members, N images, H W height and width of the input, CI and CO channels in and out, KH KW of the kernel.
R = N * OH * OW rows of the implicit matrix product, K = KH * KW * CI its depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Geometry:
    """The sizes of one convolution of M networks. Raises ValueError where they don't fit together."""

    M: int
    N: int
    H: int
    W: int
    CI: int
    CO: int
    KH: int
    KW: int
    stride: int
    padding: int

    @classmethod
    def of(cls, x_shape: Sequence[int], weight_shape: Sequence[int], stride: int, padding: int) -> "Geometry":
        """From the shapes of x [M, N, H, W, CI] and of the weights [M, CO, KH, KW, CI]."""
        if (
            len(x_shape) != 5
            or len(weight_shape) != 5
            or (x_shape[0], x_shape[4]) != (weight_shape[0], weight_shape[4])
        ):
            raise ValueError(
                f"activations have shape {tuple(x_shape)} and weights {tuple(weight_shape)}; "
                "they need [M, N, H, W, CI] and [M, CO, KH, KW, CI]"
            )
        M, N, H, W, CI = x_shape
        CO, KH, KW = weight_shape[1:4]
        return cls(M, N, H, W, CI, CO, KH, KW, stride, padding)

    def __post_init__(self) -> None:
        if self.stride < 1 or self.padding < 0:
            raise ValueError(f"stride {self.stride} and padding {self.padding}; they need to be >= 1 and >= 0")
        if min(self.OH, self.OW) < 1:
            raise ValueError(
                f"a {self.KH} x {self.KW} kernel does not fit into {self.H} x {self.W} images with "
                f"{self.padding} of padding"
            )
        if max(self.N * self.H * self.W * self.CI, self.R * self.CO) >= 2**31:
            raise ValueError(
                f"a member's activations of {self.N} images hold 2^31 values or more; use smaller batches"
            )

    @property
    def OH(self) -> int:
        """Height of the output."""
        return (self.H + 2 * self.padding - self.KH) // self.stride + 1

    @property
    def OW(self) -> int:
        """Width of the output."""
        return (self.W + 2 * self.padding - self.KW) // self.stride + 1

    @property
    def R(self) -> int:
        """Places of the output in all images of a member."""
        return self.N * self.OH * self.OW

    @property
    def K(self) -> int:
        """Products that one output sums."""
        return self.KH * self.KW * self.CI

    @property
    def x_shape(self) -> tuple[int, ...]:
        """[M, N, H, W, CI]."""
        return (self.M, self.N, self.H, self.W, self.CI)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """[M, N, OH, OW, CO]."""
        return (self.M, self.N, self.OH, self.OW, self.CO)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[M, CO, KH, KW, CI]."""
        return (self.M, self.CO, self.KH, self.KW, self.CI)


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
