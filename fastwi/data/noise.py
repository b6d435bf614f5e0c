"""SGD noise: batch order and augmentation draws as pure functions of (noise seed, stream, epoch).

Draws come from NumPy's Philox, a counter-based generator whose 128-bit key is (noise seed, stream and epoch): no two
streams, epochs or seeds share draws, and nothing depends on what was drawn before. They are made on the host, for
every device and engine, from raw 64-bit words, which no version of NumPy may change.

Draw i of an epoch belongs to the i-th position of the epoch's order, not to image i.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_EPOCH_BITS = 48


class Stream(IntEnum):
    """What a sequence of draws is for. The numbers are part of every result: never renumber them."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    INIT = 3
    STATISTICS_ORDER = 4
    STATISTICS_CROP = 5
    STATISTICS_FLIP = 6
    SUBSET = 7
    LAYERS = 8
    STATISTICS_LAYERS = 9
    PROBES = 10


def raw_words(seed: int, stream: Stream, epoch: int, count: int) -> NDArray[np.uint64]:
    """The first `count` words of one (seed, stream, epoch), uniform on 0 .. 2^64 - 1."""
    if not 0 <= seed < 2**64 or not 0 <= epoch < 2**_EPOCH_BITS:
        raise ValueError(f"seed {seed} must be in [0, 2^64) and epoch {epoch} in [0, 2^{_EPOCH_BITS})")
    key = np.array([seed, (int(stream) << _EPOCH_BITS) | epoch], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64)


def permutation(seed: int, stream: Stream, epoch: int, count: int) -> NDArray[np.int64]:
    """A uniform permutation of 0 .. count - 1: the ranks of as many words. Ties keep their order."""
    words = raw_words(seed, stream, epoch, count)
    # Six times as fast as a stable sort where the processor has vectors for it, and the same without ties.
    order = np.argsort(words)
    ranked = words[order]
    if (ranked[1:] == ranked[:-1]).any():
        order = np.argsort(words, kind="stable")
    return order.astype(np.int64, copy=False)


@dataclass(frozen=True)
class Draws:
    """One epoch's draws for N images: `order_N` and `offset_N2` (top, left; pixels) integers, `flip_N` bool."""

    order_N: NDArray[np.integer]
    offset_N2: NDArray[np.integer]
    flip_N: NDArray[np.bool_]


@dataclass(frozen=True)
class Noise:
    """The SGD noise of one trajectory; with `statistics`, of the recomputation of its batch-norm statistics."""

    seed: int
    statistics: bool = False

    def layers_seed(self, epoch: int, step: int = 0) -> int:
        """The seed of torch's generator for layers that draw themselves (dropout), from `step` of `epoch` on."""
        stream = Stream.STATISTICS_LAYERS if self.statistics else Stream.LAYERS
        return int(raw_words(self.seed, stream, epoch, step + 1)[step] >> np.uint64(1))

    def draws(self, epoch: int, images: int, padding: int, flip_probability: float) -> Draws:
        """Draws of global epoch `epoch` for `images` images.

        Offsets are uniform on 0 .. 2 * padding, flips have probability `flip_probability` (paper, Appendix A).
        """
        order, crop, flip = Stream.ORDER, Stream.CROP, Stream.FLIP
        if self.statistics:
            order, crop, flip = Stream.STATISTICS_ORDER, Stream.STATISTICS_CROP, Stream.STATISTICS_FLIP
        # The high 32 bits scaled to 0 .. 2 * padding: uneven by less than one part in 10^7.
        offset = raw_words(self.seed, crop, epoch, 2 * images)
        offset >>= np.uint64(32)  # in place: new memory costs more than the arithmetic
        offset *= np.uint64(2 * padding + 1)
        offset >>= np.uint64(32)
        uniform = (raw_words(self.seed, flip, epoch, images) >> np.uint64(11)) * 2.0**-53
        return Draws(
            order_N=permutation(self.seed, order, epoch, images),
            offset_N2=offset.view(np.int64).reshape(images, 2),
            flip_N=uniform < flip_probability,
        )
