"""Arrays and files that several tests of .beton files use."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastwi.beton import write_beton
from fastwi.beton.format import ALLOCATION, FIELD, HEADER, INT, RGB_IMAGE, metadata_record

needs_ffcv = [
    pytest.mark.ffcv,
    pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed"),
]

RECORD = metadata_record([RGB_IMAGE, INT])
METADATA_START = HEADER.itemsize + 2 * FIELD.itemsize


def random_split(samples: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[samples, height, width, 3]` and int64 labels, some of them negative."""
    generator = np.random.default_rng([seed, samples, height, width])
    images_NHWC = generator.integers(0, 256, (samples, height, width, 3), dtype=np.uint8)
    return images_NHWC, generator.integers(-5, 100, samples)


class Poked:
    """A small valid .beton file in memory, whose parts can be changed before it is written to disk."""

    def __init__(self, folder: Path, samples: int = 5, height: int = 4, width: int = 3) -> None:
        self._path = folder / "poked.beton"
        self.images_NHWC, self.labels_N = random_split(samples, height, width)
        write_beton(self._path, self.images_NHWC, self.labels_N, page_size=64)
        self.data = bytearray(self._path.read_bytes())

    def _view(self, dtype: np.dtype, offset: int, count: int) -> Any:
        return np.frombuffer(self.data, dtype, count=count, offset=offset)

    @property
    def header(self) -> Any:
        return self._view(HEADER, 0, 1)

    @property
    def fields(self) -> Any:
        return self._view(FIELD, HEADER.itemsize, 2)

    @property
    def images(self) -> Any:
        return self._view(RECORD, METADATA_START, len(self.labels_N))["f0"]

    @property
    def table(self) -> Any:
        return self._view(ALLOCATION, int(self.header["alloc_table_ptr"][0]), len(self.labels_N))

    def write(self) -> Path:
        self._path.write_bytes(self.data)
        return self._path
