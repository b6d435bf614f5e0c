"""Arrays and files that several tests of .beton files use."""

from pathlib import Path
from typing import Any

import numpy as np
from stored_samples import write_beton

from fastwi.beton.format import ALLOCATION, FIELD, HEADER, METADATA_START, RECORD


def random_split(samples: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[samples, height, width, 3]` and int64 labels, some of them negative."""
    generator = np.random.default_rng([samples, height, width])
    images_NHWC = generator.integers(0, 256, (samples, height, width, 3), dtype=np.uint8)
    return images_NHWC, generator.integers(-5, 100, samples)


class Poked:
    """A small valid .beton file in memory, whose parts can be changed before it is written to disk."""

    def __init__(self, folder: Path, samples: int = 5, height: int = 4, width: int = 3) -> None:
        self._path = folder / "poked.beton"
        self.images_NHWC, self.labels_N = random_split(samples, height, width)
        write_beton(self._path, self.images_NHWC, self.labels_N, page_size=64)
        self.data = bytearray(self._path.read_bytes())
        self.table_start = len(self.data) - samples * ALLOCATION.itemsize

    def part(self, name: str) -> Any:
        """The header, fields, images (of the records) or allocation table, whose values can be set."""
        samples = len(self.labels_N)
        dtype, start, count = {
            "header": (HEADER, 0, 1),
            "fields": (FIELD, HEADER.itemsize, 2),
            "images": (RECORD, METADATA_START, samples),
            "table": (ALLOCATION, self.table_start, samples),
        }[name]
        found = np.frombuffer(self.data, dtype, count, start)
        return found["image"] if name == "images" else found

    def write(self) -> Path:
        self._path.write_bytes(self.data)
        return self._path
