"""FFCV reads what is written here and the other way round, equal to the byte."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beton_samples import needs_ffcv, random_split

from fastwi.beton import read_beton, write_beton
from fastwi.errors import BetonError

pytestmark = [
    *needs_ffcv,
    # FFCV's writer forks; Python 3.12 warns of that where torch's threads run.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _threads_kept() -> Iterator[None]:
    """FFCV sets torch's threads at its import."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Rows:
    """Columns as the indexable dataset that FFCV's writer wants."""

    def __init__(self, *columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(column[index] for column in self.columns)


def ffcv_write(path: Path, fields: dict[str, Any], rows: Rows, workers: int = 1, page_size: int = 1 << 21) -> None:
    from ffcv.writer import DatasetWriter

    DatasetWriter(str(path), fields, page_size=page_size, num_workers=workers).from_indexed_dataset(rows, chunksize=7)


def image_and_label() -> dict[str, Any]:
    from ffcv.fields import IntField, RGBImageField

    return {"image": RGBImageField(write_mode="raw"), "label": IntField()}


def check_equal(path: Path, images_NHWC: np.ndarray, labels_N: np.ndarray) -> None:
    beton = read_beton(path)
    np.testing.assert_array_equal(beton.images_NHWC, images_NHWC)
    np.testing.assert_array_equal(beton.labels_N, labels_N)


# Reads files with FFCV's Loader. In a process of its own: numba raises in finalizers when a Loader's compiled
# code is collected, which pytest would blame on whatever test runs then.
LOAD = """
import sys
import numpy as np
from ffcv.loader import Loader, OrderOption

for path, os_cache in zip(sys.argv[1::2], sys.argv[2::2]):
    loader = Loader(path, batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
                    os_cache=os_cache == "os")
    batches = iter(loader)
    read = [(images.numpy().copy(), labels.numpy().copy()) for images, labels in batches]
    batches.close()
    batches.join()
    np.savez(path + ".npz", images=np.concatenate([images for images, _ in read]),
             labels=np.concatenate([labels for _, labels in read])[:, 0])
"""


def test_ffcv_loads_our_files(tmp_path: Path) -> None:
    cases = [(1, 5, 3, 64, "os"), (23, 7, 9, 1024, "process"), (1400, 16, 33, 1 << 21, "os")]
    arguments = []
    for samples, height, width, page_size, cache in cases:
        path = tmp_path / f"{samples}.beton"
        write_beton(path, *random_split(samples, height, width), page_size=page_size)
        arguments += [str(path), cache]
    ended = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for samples, height, width, *_ in cases:
        images_NHWC, labels_N = random_split(samples, height, width)
        read = np.load(tmp_path / f"{samples}.beton.npz")
        np.testing.assert_array_equal(read["images"], images_NHWC)
        np.testing.assert_array_equal(read["labels"], labels_N)


@pytest.mark.parametrize(
    ("samples", "height", "width", "page_size"),
    [
        (1, 1, 1, 1 << 21),
        (100, 1, 257, 1 << 21),
        (55, 100, 199, 1 << 21),
        (683, 32, 32, 1 << 23),
        (7, 500, 600, 1 << 21),
    ],
)
def test_both_writers_write_the_same_bytes(
    tmp_path: Path, samples: int, height: int, width: int, page_size: int
) -> None:
    images_NHWC, labels_N = random_split(samples, height, width)
    write_beton(tmp_path / "ours.beton", images_NHWC, labels_N, page_size=page_size)
    ffcv_write(tmp_path / "theirs.beton", image_and_label(), Rows(images_NHWC, labels_N), page_size=page_size)
    assert (tmp_path / "ours.beton").read_bytes() == (tmp_path / "theirs.beton").read_bytes()


def test_files_of_several_workers(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(200, 100, 90)
    ffcv_write(tmp_path / "a.beton", image_and_label(), Rows(images_NHWC, labels_N), workers=3)
    check_equal(tmp_path / "a.beton", images_NHWC, labels_N)


def test_fields_in_another_order_among_others(tmp_path: Path) -> None:
    from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField

    images_NHWC, labels_N = random_split(40, 6, 10)
    fields = {
        "weight": FloatField(),
        "target": IntField(),
        "note": JSONField(),
        "blob": BytesField(),
        "picture": RGBImageField(write_mode="raw"),
        "vector": NDArrayField(np.dtype("float32"), (3,)),
    }
    notes = [{"n": "x" * n} for n in range(40)]
    blobs = [np.zeros(180, np.uint8)] * 40  # as many bytes as an image
    vectors = np.ones((40, 3), np.float32)
    ffcv_write(tmp_path / "a.beton", fields, Rows(np.ones(40), labels_N, notes, blobs, images_NHWC, vectors))
    check_equal(tmp_path / "a.beton", images_NHWC, labels_N)


def test_files_that_are_not_raw_pairs_of_one_size(tmp_path: Path) -> None:
    from ffcv.fields import IntField, RGBImageField

    images_NHWC, labels_N = random_split(5, 8, 8)
    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    ffcv_write(tmp_path / "a.beton", fields, Rows(images_NHWC, labels_N))
    with pytest.raises(BetonError, match="image 0 is JPEG"):
        read_beton(tmp_path / "a.beton")
    mixed = [*images_NHWC[:3], images_NHWC[3, :, :5]]
    ffcv_write(tmp_path / "b.beton", image_and_label(), Rows(mixed, labels_N))
    with pytest.raises(BetonError, match="image 3 is 8 x 5, image 0 is 8 x 8"):
        read_beton(tmp_path / "b.beton")
    fields = {"image": RGBImageField(write_mode="raw"), "one": IntField(), "two": IntField()}
    ffcv_write(tmp_path / "c.beton", fields, Rows(images_NHWC, labels_N, labels_N))
    with pytest.raises(BetonError, match="has 1 RGB image fields and 2 integer fields"):
        read_beton(tmp_path / "c.beton")
