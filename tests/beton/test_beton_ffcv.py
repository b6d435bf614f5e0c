"""FFCV reads what is written here and the other way round, equal to the byte."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beton_samples import random_split
from stored_samples import read_beton, smooth_image, write_beton

from fastwi.beton import StoredBeton
from fastwi.beton.format import JPEG, RAW
from fastwi.data.decode import decode_jpeg
from fastwi.errors import BetonError

pytestmark = [
    pytest.mark.ffcv,
    pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed"),
    # FFCV's writer forks; Python 3.12 warns of that where torch's threads run.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


class Rows:
    """Columns as the indexable dataset that FFCV's writer wants."""

    def __init__(self, *columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(column[index] for column in self.columns)


def ffcv_write(path: Path, *columns: Any, mode: str = "raw", workers: int = 1, page_size: int = 1 << 21) -> Path:
    """Images, and one integer field for each more column."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode=mode)}
    fields |= {f"label{number}" if number else "label": IntField() for number in range(len(columns) - 1)}
    writer = DatasetWriter(str(path), fields, page_size=page_size, num_workers=workers)
    writer.from_indexed_dataset(Rows(*columns), chunksize=7)
    return path


# Reads files with FFCV's Loader. In a process of its own: numba raises in finalizers when a Loader's compiled
# code is collected, which pytest would blame on whatever test runs then.
LOAD = """
import sys
import numpy as np
from ffcv.loader import Loader, OrderOption

for path in sys.argv[1:]:
    loader = Loader(path, batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False, os_cache=True)
    batches = iter(loader)
    read = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in batches]
    batches.close()
    batches.join()
    np.savez(path + ".npz", images=np.concatenate([images for images, _ in read]),
             labels=np.concatenate([labels for _, labels in read])[:, 0])
"""


def test_ffcv_loads_our_files(tmp_path: Path) -> None:
    expected = {}
    for samples, height, width, page_size in ((1, 5, 3, 64), (23, 7, 9, 1024), (1400, 16, 33, 1 << 21)):
        path = str(tmp_path / f"{samples}.beton")
        expected[path] = random_split(samples, height, width)
        write_beton(path, *expected[path], page_size=page_size)
    ended = subprocess.run([sys.executable, "-c", LOAD, *expected], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for path, (images_NHWC, labels_N) in expected.items():
        read = np.load(path + ".npz")
        np.testing.assert_array_equal(read["images"], images_NHWC)
        np.testing.assert_array_equal(read["labels"], labels_N)


@pytest.mark.parametrize(
    ("samples", "height", "width", "page_size"),
    [(1, 1, 1, 1 << 21), (55, 100, 199, 1 << 21), (683, 32, 32, 1 << 23), (7, 500, 600, 1 << 21)],
)
def test_both_writers_write_the_same_bytes(
    tmp_path: Path, samples: int, height: int, width: int, page_size: int
) -> None:
    images_NHWC, labels_N = random_split(samples, height, width)
    write_beton(tmp_path / "ours.beton", images_NHWC, labels_N, page_size=page_size)
    ffcv_write(tmp_path / "theirs.beton", images_NHWC, labels_N, page_size=page_size)
    assert (tmp_path / "ours.beton").read_bytes() == (tmp_path / "theirs.beton").read_bytes()


def test_files_of_several_workers(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(200, 100, 90)
    beton = read_beton(ffcv_write(tmp_path / "a.beton", images_NHWC, labels_N, workers=3))
    np.testing.assert_array_equal(beton.images_NHWC, images_NHWC)
    np.testing.assert_array_equal(beton.labels_N, labels_N)


def test_files_of_raw_images_and_jpegs(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = [smooth_image(generator, int(h), int(w)) for h, w in generator.integers(4, 40, (40, 2))]
    beton = StoredBeton(ffcv_write(tmp_path / "a.beton", images, np.arange(40), mode="proportion"))
    np.testing.assert_array_equal(beton.labels_N, np.arange(40))
    assert set(beton.modes_N.tolist()) == {RAW, JPEG}
    for n, image_HWC in enumerate(images):
        stored = beton.read(n)
        if beton.modes_N[n] == RAW:
            assert stored == image_HWC.tobytes()
        else:
            assert np.abs(decode_jpeg(stored, *image_HWC.shape[:2]).astype(int) - image_HWC).mean() < 24


def test_files_of_other_fields_are_refused(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(5, 8, 8)
    with pytest.raises(BetonError, match="has 3 fields"):
        read_beton(ffcv_write(tmp_path / "a.beton", images_NHWC, labels_N, labels_N))
