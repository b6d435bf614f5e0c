"""What the writer writes and refuses; it is read back."""

from pathlib import Path

import numpy as np
import pytest
from beton_samples import random_split
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_samples import read_beton, write_beton

from fastwi.beton import StoredBeton, StoredImage, write_stored
from fastwi.beton.format import ALLOCATION, HEADER, JPEG, RAW, page_size_for
from fastwi.beton.writer import ImageTooLarge
from fastwi.errors import BetonError

GOOD = StoredImage(RAW, 4, 4, bytes(48))


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 40), height=st.integers(1, 9), width=st.integers(1, 9), extra_bits=st.integers(0, 6))
def test_random_sizes_come_back_equal(
    tmp_path_factory: pytest.TempPathFactory, samples: int, height: int, width: int, extra_bits: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.beton"
    images_NHWC, labels_N = random_split(samples, height, width)
    smallest = 1 << (images_NHWC[0].nbytes - 1).bit_length()
    write_beton(path, images_NHWC, labels_N, page_size=smallest << extra_bits)
    beton = read_beton(path)
    np.testing.assert_array_equal(beton.images_NHWC, images_NHWC)
    np.testing.assert_array_equal(beton.labels_N, labels_N)
    assert (beton.images_NHWC.dtype, beton.labels_N.dtype) == (np.uint8, np.int64)
    assert beton.images_NHWC.flags.c_contiguous
    whole = path.read_bytes()
    write_beton(path, np.asfortranarray(images_NHWC), labels_N.astype(np.int32), page_size=smallest << extra_bits)
    assert path.read_bytes() == whole  # the same arrays, in any layout, give the same bytes


@pytest.mark.parametrize(
    ("sizes", "page", "places"),
    [
        ([900_000 + n for n in range(5)], 1 << 21, [0, 900_000, 1 << 21, (1 << 21) + 900_002, 1 << 22]),
        ([40, 24, 64, 1], 64, [0, 40, 64, 128]),  # filled to the last byte
    ],
)
def test_pages_are_full_before_the_next_begins(
    tmp_path: Path, sizes: list[int], page: int, places: list[int]
) -> None:
    images = [StoredImage(JPEG, 8, 8, bytes([n]) * size) for n, size in enumerate(sizes)]
    write_stored(tmp_path / "a.beton", images, np.arange(len(sizes)), page)
    data = (tmp_path / "a.beton").read_bytes()
    table = np.frombuffer(data[-len(sizes) * ALLOCATION.itemsize :], ALLOCATION)
    assert table["ptr"][0] % page == 0
    assert (table["ptr"] - table["ptr"][0]).tolist() == places
    assert int(np.frombuffer(data, HEADER, 1)["alloc_table_ptr"][0]) == table["ptr"][0] + places[-1] + page
    assert [StoredBeton(tmp_path / "a.beton").read(n) for n in range(len(sizes))] == [each.data for each in images]


def test_the_smallest_page_that_holds_an_image() -> None:
    sizes = (1, 1 << 21, (1 << 21) + 1, 1 << 22, (1 << 22) + 1)
    assert [page_size_for(size) for size in sizes] == [1 << 21, 1 << 21, 1 << 22, 1 << 22, 1 << 23]


@pytest.mark.parametrize("page_size", [-64, 96, 1 << 32])
def test_page_sizes_that_cannot_be(tmp_path: Path, page_size: int) -> None:
    with pytest.raises(BetonError, match=f"page_size: {page_size}"):
        write_beton(tmp_path / "a.beton", *random_split(2, 4, 3), page_size=page_size)
    with pytest.raises(ImageTooLarge, match="36 bytes, more than a page of 32") as caught:
        write_beton(tmp_path / "a.beton", *random_split(2, 4, 3), page_size=32)
    assert caught.value.needed == 36


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (StoredImage(RAW, 4, 4, bytes(47)), "image 1: 47 bytes of mode 1"),
        (StoredImage(JPEG, 4, 4, b""), "image 1: 0 bytes of mode 0"),
        (StoredImage(7, 4, 4, bytes(48)), "image 1: 48 bytes of mode 7"),
        (StoredImage(JPEG, 0, 4, bytes(48)), "image 1: .* 0 x 4 pixels"),
        (StoredImage(JPEG, 4, 65536, bytes(48)), "image 1: .* 4 x 65536 pixels"),
        (StoredImage(JPEG, 4, 4, bytes(65)), "65 bytes, more than a page of 64"),
    ],
)
def test_images_that_no_beton_holds(tmp_path: Path, image: StoredImage, said: str) -> None:
    with pytest.raises(BetonError, match=said):
        write_stored(tmp_path / "a", [GOOD, image], np.zeros(2, np.int64), 64)
    for count in (1, 3):
        with pytest.raises(ValueError, match="zip"):
            write_stored(tmp_path / "a", [GOOD] * count, np.zeros(2, np.int64), 64)
