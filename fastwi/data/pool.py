"""The reference decoder over a stored beton: a pool of threads that decodes the next chunks while one is used.

Shapes: N images of a chunk, H W of the dataset's images.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastwi.beton.format import RAW
from fastwi.beton.stream import StoredBeton
from fastwi.data.decode import decode_jpeg, fit
from fastwi.errors import BetonError

AHEAD = 2
"""Chunks that are decoded, or being decoded, while one is used. No more of the file is ever held in memory."""

_MOST_WORKERS = 16


class Decoder(Protocol):
    """Decodes the images of one file."""

    def chunks(self, at_N: np.ndarray, size: int, height: int, width: int, pinned: bool) -> Iterator[Tensor]:
        """Images `at_N` (int64, numbers in the file), `size` at a time: uint8 [N, height, width, 3] on the CPU.

        `pinned`: in memory that a GPU copies from on its own. Closing the iterator, or finishing it, ends all that
        it has started. Raises BetonError, which names the image, where one is damaged.
        """


def processors() -> int:
    """Processors that this process may use: its affinity's, within its control group's (a container's) quota."""
    import joblib  # here, since it takes a while and most runs never ask

    return int(joblib.cpu_count())


class PooledDecoder:
    """`Decoder` with the reference: Pillow decodes outside of Python's lock, so threads do it in parallel.

    However many iterators are open, they share one pool of threads, which ends with the last of them.
    """

    def __init__(self, beton: StoredBeton) -> None:
        self._beton = beton
        self._workers = min(_MOST_WORKERS, processors())
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._users = 0

    def chunks(self, at_N: np.ndarray, size: int, height: int, width: int, pinned: bool) -> Iterator[Tensor]:
        """As `Decoder.chunks` says."""
        waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
        with self._shared_pool() as pool:
            try:
                for start in range(0, len(at_N), size):
                    while len(waiting) <= AHEAD and (first := start + len(waiting) * size) < len(at_N):
                        waiting.append(self._begin(pool, at_N[first : first + size], (height, width, 3), pinned))
                    for job in waiting[0][1]:
                        job.result()
                    yield waiting.popleft()[0]
            finally:
                left = [job for _, jobs in waiting for job in jobs]
                for job in left:
                    job.cancel()
                wait(left)  # those that had begun: nothing may go on after the iterator is closed

    def _begin(
        self, pool: ThreadPoolExecutor, at_N: np.ndarray, shape: tuple[int, int, int], pinned: bool
    ) -> tuple[Tensor, list["Future[None]"]]:
        """Have one chunk decoded, in parts: its tensor, and what must be done before it may be read."""
        images_NHWC = torch.empty((len(at_N), *shape), dtype=torch.uint8, pin_memory=pinned)
        rows, share = images_NHWC.numpy(), -(-len(at_N) // self._workers)
        starts = range(0, len(at_N), share)
        return images_NHWC, [
            pool.submit(self._decode, at_N[start : start + share], rows[start : start + share]) for start in starts
        ]

    def _decode(self, at_N: np.ndarray, images_NHWC: np.ndarray) -> None:
        for n, target_HWC in zip(at_N.tolist(), images_NHWC, strict=True):
            decode_into(self._beton, n, target_HWC)

    @contextlib.contextmanager
    def _shared_pool(self) -> Iterator[ThreadPoolExecutor]:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="fastwi-decode")
            pool = self._pool
            self._users += 1
        try:
            yield pool
        finally:
            with self._lock:
                self._users -= 1
                last = self._users == 0
                if last:
                    self._pool = None
            if last:
                pool.shutdown()


def decode_into(beton: StoredBeton, n: int, target_HWC: np.ndarray) -> None:
    """Image n of `beton` at the target's size (`fastwi.data.decode.fit`). Raises BetonError that names the image."""
    height, width = beton.size(n)
    if beton.modes_N[n] == RAW and target_HWC.shape[:2] == (height, width):
        beton.read_into(n, target_HWC.reshape(-1).data)
        return
    stored = beton.read(n)
    if beton.modes_N[n] == RAW:
        pixels_HWC = np.frombuffer(stored, np.uint8).reshape(height, width, 3)
    else:
        try:
            pixels_HWC = decode_jpeg(stored, height, width)
        except BetonError as error:
            raise bad_image(beton, n, str(error)) from error
    target_HWC[...] = fit(pixels_HWC, *target_HWC.shape[:2])


def bad_image(beton: StoredBeton, n: int, what: str) -> BetonError:
    """The error for an image that cannot be decoded."""
    return BetonError(f"{beton.path}: image {n} {what}; write the file anew")
