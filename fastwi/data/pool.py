"""The reference decoder over a stored beton: a pool of threads that decodes the next chunks while one is used.

Shapes: N images of a chunk, H W of the dataset's images.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastwi.beton import StoredBeton
from fastwi.beton.format import RAW
from fastwi.data.decode import decode_jpeg, fit
from fastwi.errors import BetonError

AHEAD = 2
"""Chunks that are decoded, or being decoded, while one is used. No more of the file is ever held in memory."""

_MOST_WORKERS = 16


class Decoder(Protocol):
    """Decodes the images of one file."""

    def chunks(self, at_N: np.ndarray, size: int, height: int, width: int, pinned: bool) -> Iterator[Tensor]:
        """Images `at_N` (int64, numbers in the file), `size` at a time: uint8 [N, height, width, 3] on the CPU.

        `pinned`: in memory that a GPU copies from on its own. Closing the iterator ends all work that it has started.
        Raises BetonError, which names the image, where one is damaged.
        """


def processors() -> int:
    """Processors that this process may use: its affinity's, within its control group's (a container's) quota."""
    import joblib  # here, since it takes a while and most runs never ask

    return int(joblib.cpu_count())


class PooledDecoder:
    """`Decoder` with the reference: Pillow decodes outside of Python's lock, so threads do it in parallel.

    However many iterators are open, they share one pool of threads, which ends with this object. A forked process
    begins one of its own: threads do not live on in it.
    """

    def __init__(self, beton: StoredBeton) -> None:
        self._beton = beton
        self._workers = min(_MOST_WORKERS, processors())
        self._begin_pool()

    def _begin_pool(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="fastwi-decode")

    def chunks(self, at_N: np.ndarray, size: int, height: int, width: int, pinned: bool) -> Iterator[Tensor]:
        """As `Decoder.chunks` says."""
        waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
        try:
            for start in range(0, len(at_N), size):
                while len(waiting) <= AHEAD and (first := start + len(waiting) * size) < len(at_N):
                    waiting.append(self._begin(at_N[first : first + size], (height, width, 3), pinned))
                for job in waiting[0][1]:
                    job.result()
                yield waiting.popleft()[0]
        finally:
            left = [job for _, jobs in waiting for job in jobs]
            for job in left:
                job.cancel()
            wait(left)  # those that had begun: nothing may go on after the iterator is closed

    def _begin(
        self, at_N: np.ndarray, shape: tuple[int, int, int], pinned: bool
    ) -> tuple[Tensor, list["Future[None]"]]:
        """Have one chunk decoded, in parts: its tensor, and what must be done before it may be read."""
        if os.getpid() != self._process:
            self._begin_pool()
        images_NHWC = torch.empty((len(at_N), *shape), dtype=torch.uint8, pin_memory=pinned)
        rows, share = images_NHWC.numpy(), -(-len(at_N) // self._workers)
        return images_NHWC, [
            self._pool.submit(_decode, self._beton, at_N[start : start + share], rows[start : start + share])
            for start in range(0, len(at_N), share)
        ]


def _decode(beton: StoredBeton, at_N: np.ndarray, images_NHWC: np.ndarray) -> None:
    """Images `at_N` of `beton` at the size of the targets (`fastwi.data.decode.fit`)."""
    for n, target_HWC in zip(at_N.tolist(), images_NHWC, strict=True):
        height, width = beton.size(n)
        raw = beton.modes_N[n] == RAW
        if raw and target_HWC.shape[:2] == (height, width):
            beton.read_into(n, target_HWC.reshape(-1).data)
            continue
        stored = beton.read(n)
        if raw:
            pixels_HWC = np.frombuffer(stored, np.uint8).reshape(height, width, 3)
        else:
            try:
                pixels_HWC = decode_jpeg(stored, height, width)
            except BetonError as error:
                raise bad_image(beton, n, str(error)) from error
        target_HWC[...] = fit(pixels_HWC, *target_HWC.shape[:2])


def bad_image(beton: StoredBeton, n: int, what: str) -> BetonError:
    """The error for an image that cannot be decoded."""
    return BetonError(f"{beton.path}: image {n} {what}; write the file again")
