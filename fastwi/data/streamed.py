"""A dataset that stays on the disk: a pool of threads decodes the next chunks while one is used.

Shapes: N images, H height, W width, C channels, K classes.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.beton import StoredBeton
from fastwi.beton.format import RAW
from fastwi.data.decode import Decode, decode_jpeg, fit
from fastwi.errors import BetonError

AHEAD = 2
"""Chunks that are decoded, or being decoded, while one is used. No more of the file is ever held in memory."""

_MOST_WORKERS = 16


def processors() -> int:
    """Processors that this process may use: its affinity's, within its control group's (a container's) quota."""
    import joblib  # here, since it takes a while and most runs never ask

    return int(joblib.cpu_count())


@dataclass(frozen=True)
class StreamedDataset:
    """One split of which only labels and a few chunks are in memory.

    file_N int64: where each of these images is in the file, which stays open as long as the dataset is there.
    labels_N int64 and table_C256 float32 are on the device that chunks go to. decode: what decodes JPEGs.
    """

    beton: StoredBeton
    file_N: NDArray[np.int64]
    labels_N: Tensor
    table_C256: Tensor
    classes: int
    image_shape: tuple[int, int, int]
    decode: Decode = decode_jpeg

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels_N)

    def part(self, at_N: Tensor) -> "StreamedDataset":
        """The images at positions `at_N`, in that order, as a dataset of their own over the same file."""
        at = at_N.to(self.labels_N.device)
        return replace(self, file_N=self.file_N[at.cpu().numpy()], labels_N=self.labels_N[at])

    def chunks(self, order_N: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As `ResidentDataset.chunks`; each chunk is a tensor of its own, of its images in order.

        Closing the iterator ends its work. Raises ValueError for other positions, BetonError for a damaged image.
        """
        order = order_N.cpu().numpy()
        if size < 1 or (len(order) and not 0 <= order.min() <= order.max() < len(self)):
            raise ValueError(f"chunks of {size} of positions that are not all in 0 .. {len(self) - 1}")
        device = self.labels_N.device
        waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
        # One for each iterator: threads do not live on in a forked process, and Pillow decodes outside of the GIL.
        workers = min(_MOST_WORKERS, processors())
        pool = ThreadPoolExecutor(workers, thread_name_prefix="fastwi-decode")
        try:
            for first in range(0, len(order) + AHEAD * size, size):
                if first < len(order):
                    waiting.append(self._begin(pool, workers, self.file_N[order[first : first + size]]))
                if first < AHEAD * size:
                    continue
                images_NHWC, jobs = waiting.popleft()
                for job in jobs:
                    job.result()
                yield images_NHWC.to(device, non_blocking=True), torch.arange(len(images_NHWC), device=device)
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, parts: int, file_N: np.ndarray) -> tuple[Tensor, list[Future[None]]]:
        """Have one chunk decoded, in `parts`: its tensor, and what must be done before it may be read."""
        # Pinned: in memory that a GPU copies from on its own.
        pinned = self.labels_N.device.type == "cuda"
        images_NHWC = torch.empty((len(file_N), *self.image_shape), dtype=torch.uint8, pin_memory=pinned)
        share = -(-len(file_N) // parts)
        jobs = []
        for first in range(0, len(file_N), share):
            rows = slice(first, first + share)
            jobs.append(pool.submit(self._decode, file_N[rows], images_NHWC.numpy()[rows]))
        return images_NHWC, jobs

    def _decode(self, file_N: np.ndarray, images_NHWC: np.ndarray) -> None:
        """Write images `file_N` at the size of the targets (`fastwi.data.decode.fit`)."""
        beton = self.beton
        for n, target_HWC in zip(file_N.tolist(), images_NHWC, strict=True):
            height, width = beton.size(n)
            stored = beton.read(n)
            if beton.modes_N[n] == RAW:
                pixels_HWC = np.frombuffer(stored, np.uint8).reshape(height, width, 3)
            else:
                try:
                    pixels_HWC = self.decode(stored, height, width)
                except BetonError as error:
                    raise BetonError(f"{beton.path}: image {n} {error}; write the file again") from error
            target_HWC[...] = fit(pixels_HWC, *target_HWC.shape[:2])
