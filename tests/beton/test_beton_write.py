"""What the writers write and refuse; read_beton reads it back."""

from pathlib import Path

import numpy as np
import pytest
from beton_samples import random_split
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwi.beton import StoredImage, read_beton, write_beton, write_stored_stream
from fastwi.beton.format import ALLOCATION, HEADER, JPEG, RAW, page_size_for
from fastwi.beton.writer import ImageTooLarge
from fastwi.errors import BetonError, UserError

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
    assert beton.images_NHWC.dtype == np.uint8
    assert beton.labels_N.dtype == np.int64
    assert beton.images_NHWC.flags.c_contiguous
    path.unlink()
    beton.images_NHWC[0] = 0  # what was read does not depend on the file, and can be written to
    beton.labels_N[0] = 0


@pytest.mark.parametrize(
    ("samples", "height", "width"), [(1, 32, 32), (682, 32, 32), (683, 32, 32), (1365, 32, 32), (2, 900, 801)]
)
def test_counts_around_a_page(tmp_path: Path, samples: int, height: int, width: int) -> None:
    """682 images of 32 x 32 fill a page of 2 MiB; one of 900 x 801 does not fit it."""
    images_NHWC, labels_N = random_split(samples, height, width)
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N)
    beton = read_beton(tmp_path / "a.beton")
    np.testing.assert_array_equal(beton.images_NHWC, images_NHWC)
    np.testing.assert_array_equal(beton.labels_N, labels_N)


def test_same_arrays_same_bytes_in_any_layout(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(30, 5, 7)
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N, page_size=1024)
    write_beton(tmp_path / "b.beton", np.asfortranarray(images_NHWC), labels_N.astype(np.int32), page_size=1024)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


def test_pages_are_full_before_the_next_begins(tmp_path: Path) -> None:
    images = [StoredImage(JPEG, 8, 8, bytes([n]) * (900_000 + n)) for n in range(5)]
    done: list[int] = []
    with open(tmp_path / "a.beton", "wb") as stream:
        write_stored_stream(stream, images, np.arange(5), page_size_for(1), done.append)
    data = (tmp_path / "a.beton").read_bytes()
    table = np.frombuffer(data[-5 * ALLOCATION.itemsize :], ALLOCATION)
    page = 1 << 21
    assert table["ptr"].tolist() == [page, page + 900_000, 2 * page, 2 * page + 900_002, 3 * page]
    assert int(np.frombuffer(data, HEADER, 1)["alloc_table_ptr"][0]) == 4 * page
    assert done == [5]


def test_images_that_fill_a_page_to_the_last_byte(tmp_path: Path) -> None:
    images = [StoredImage(JPEG, 8, 8, bytes(size)) for size in (40, 24, 64, 1)]
    with open(tmp_path / "a.beton", "wb") as stream:
        write_stored_stream(stream, images, np.arange(4), 64)
    table = np.frombuffer((tmp_path / "a.beton").read_bytes()[-4 * ALLOCATION.itemsize :], ALLOCATION)
    assert (table["ptr"] - table["ptr"][0]).tolist() == [0, 40, 64, 128]
    assert [page_size_for(1 << 21), page_size_for((1 << 21) + 1)] == [1 << 21, 1 << 22]


def test_progress_counts_up_to_all(tmp_path: Path) -> None:
    done: list[int] = []
    with open(tmp_path / "a.beton", "wb") as stream:
        write_stored_stream(stream, [GOOD] * 1001, np.zeros(1001, np.int64), 1 << 21, done.append)
    assert done == [500, 1000, 1001]


@pytest.mark.parametrize(
    ("images_NHWC", "labels_N", "said"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2, np.int64), "images_NHWC: float32[2, 4, 4, 3]"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int64), "images_NHWC: uint8[2, 4, 4, 1]"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), "images_NHWC: uint8[2, 4, 4]"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64), "images_NHWC: uint8[0, 4, 4, 3]"),
        (np.zeros((1, 1, 65536, 3), np.uint8), np.zeros(1, np.int64), "at most 65535 a side"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64), "labels_N: int64[3]; give 2 integers"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "labels_N: float64[2]"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, bool), "labels_N: bool[2]"),
        (np.zeros((1, 4, 4, 3), np.uint8), np.array([2**63], np.uint64), "does not fit int64"),
    ],
)
def test_arrays_that_no_beton_holds(tmp_path: Path, images_NHWC: np.ndarray, labels_N: np.ndarray, said: str) -> None:
    with pytest.raises(BetonError) as caught:
        write_beton(tmp_path / "a.beton", images_NHWC, labels_N)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page_size", [0, -64, 96, 1 << 32])
def test_page_sizes_that_cannot_be(tmp_path: Path, page_size: int) -> None:
    with pytest.raises(BetonError, match=f"page_size: {page_size}; give a power of two"):
        write_beton(tmp_path / "a.beton", *random_split(2, 4, 3), page_size=page_size)
    with pytest.raises(ImageTooLarge, match="image 0: 36 bytes, more than a page of 32"):
        write_beton(tmp_path / "a.beton", *random_split(2, 4, 3), page_size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (StoredImage(RAW, 4, 4, bytes(47)), "image 1: 47 bytes of mode 1"),
        (StoredImage(JPEG, 4, 4, b""), "image 1: 0 bytes of mode 0"),
        (StoredImage(7, 4, 4, bytes(48)), "image 1: 48 bytes of mode 7"),
        (StoredImage(JPEG, 0, 4, bytes(48)), "image 1: 0 x 4 pixels"),
        (StoredImage(JPEG, 4, 65536, bytes(48)), "image 1: 4 x 65536 pixels"),
        (StoredImage(JPEG, 4, 4, bytes(65)), "image 1: 65 bytes, more than a page of 64"),
    ],
)
def test_images_that_no_beton_holds(tmp_path: Path, image: StoredImage, said: str) -> None:
    with open(tmp_path / "a", "wb") as stream:
        with pytest.raises(BetonError, match=said):
            write_stored_stream(stream, [GOOD, image], np.zeros(2, np.int64), 64)
        with pytest.raises(BetonError, match="1 images for 2 labels"):
            write_stored_stream(stream, [GOOD], np.zeros(2, np.int64), 64)
        with pytest.raises(BetonError, match="more than 1 images for 1 labels"):
            write_stored_stream(stream, [GOOD, GOOD], np.zeros(1, np.int64), 64)


def test_a_failing_write_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images_NHWC, labels_N = random_split(25, 4, 4)
    path = tmp_path / "a.beton"
    write_beton(path, images_NHWC, labels_N)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastwi.beton.writer.write_stored_stream", fail)
    with pytest.raises(UserError, match="no space left on the device"):
        write_beton(path, images_NHWC[::-1], labels_N)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
