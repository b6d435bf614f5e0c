"""FFCV's DatasetWriter with one worker, in this process. Importing FFCV takes seconds, import it late."""

import ctypes
import multiprocessing
import queue
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastwi.beton import StoredImage
from fastwi.beton.format import FIELD_NAMES
from fastwi.beton.writer import ImageTooLarge
from fastwi.data.decode import torch_threads_kept

with torch_threads_kept():
    from ffcv.fields import IntField, RGBImageField
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.writer import DatasetWriter


class _InlineWriter(DatasetWriter):
    """FFCV's writer, its one worker's job done here: FFCV waits forever for a worker process that died."""

    def _write_common(self, num_samples: int, queue_content: Any, work_fn: Any, extra_worker_args: Any) -> None:
        self.num_samples = num_samples
        self.prepare()
        work, allocations = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
        for chunk in [*queue_content, None]:
            work.put(chunk)
        allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        done = multiprocessing.Value(ctypes.c_uint64, 0)
        given = (work, self.metadata_sm, self.metadata_type, self.fields, allocator, done, allocations)
        try:
            work_fn(*given, *extra_worker_args)
            self.finalize(allocations.get())
        except BaseException as error:
            # The worker's frame holds an array over the shared memory, which could not be closed under it.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            self.metadata_sm.close()
            self.metadata_sm.unlink()


class _Samples:
    """Images as FFCV asks for them, in order: a length, and (image, label) by index."""

    def __init__(self, images: Iterator[StoredImage], labels_N: np.ndarray, page_size: int) -> None:
        self._images, self._labels_N, self._page_size = images, labels_N, page_size

    def __len__(self) -> int:
        return len(self._labels_N)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = next(self._images)
        if len(image.data) > self._page_size:
            raise ImageTooLarge(len(image.data), self._page_size)
        pixels_HWC = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        return pixels_HWC, int(self._labels_N[index])


def write_with_ffcv(path: Path, images: Iterator[StoredImage], labels_N: np.ndarray, page_size: int) -> None:
    """`fastwi.beton.write_stored` of raw images."""
    fields = dict(zip(FIELD_NAMES, (RGBImageField(write_mode="raw"), IntField()), strict=True))
    writer = _InlineWriter(str(path), fields, page_size=page_size, num_workers=1)
    writer.from_indexed_dataset(_Samples(images, labels_N, page_size))
