"""What write_beton writes and refuses; read_beton reads it back."""

from pathlib import Path

import numpy as np
import pytest
from beton_samples import random_split
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwi.beton import read_beton, write_beton
from fastwi.errors import BetonError, UserError


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 40),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    extra_bits=st.integers(0, 6),
)
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


@pytest.mark.parametrize("samples", [1, 682, 683, 1364, 1365])
def test_counts_around_the_default_page(tmp_path: Path, samples: int) -> None:
    # 682 images of 32 x 32 fill a page of 2 MiB.
    images_NHWC, labels_N = random_split(samples, 32, 32)
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N)
    beton = read_beton(tmp_path / "a.beton")
    np.testing.assert_array_equal(beton.images_NHWC, images_NHWC)
    np.testing.assert_array_equal(beton.labels_N, labels_N)


def test_an_image_larger_than_the_default_page(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(2, 900, 801)
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N)
    np.testing.assert_array_equal(read_beton(tmp_path / "a.beton").images_NHWC, images_NHWC)


def test_same_arrays_same_bytes_in_any_layout(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(30, 5, 7)
    strided = np.asfortranarray(images_NHWC)
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N, page_size=1024)
    write_beton(tmp_path / "b.beton", strided, labels_N.astype(np.int32), page_size=1024)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


def test_what_was_read_does_not_hang_on_the_file(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(1, 4, 4)
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N)
    beton = read_beton(tmp_path / "a.beton")
    with open(tmp_path / "a.beton", "r+b") as stream:
        stream.write(bytes(stream.seek(0, 2)))
        stream.seek(0)
        stream.write(bytes((tmp_path / "a.beton").stat().st_size))
    np.testing.assert_array_equal(beton.images_NHWC, images_NHWC)
    np.testing.assert_array_equal(beton.labels_N, labels_N)
    beton.images_NHWC[0] = 0  # and it can be written to
    beton.labels_N[0] = 0


def test_progress_counts_up_to_all(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(25, 4, 4)
    seen: list[int] = []
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N, page_size=512, progress=seen.append)
    assert seen == [10, 20, 25]


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


@pytest.mark.parametrize("page_size", [0, -64, 32, 48, 96, 1 << 32])
def test_page_sizes_that_cannot_be(tmp_path: Path, page_size: int) -> None:
    images_NHWC, labels_N = random_split(2, 4, 3)
    with pytest.raises(BetonError, match=f"page_size: {page_size}; give a power of two from 36"):
        write_beton(tmp_path / "a.beton", images_NHWC, labels_N, page_size=page_size)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(25, 4, 4)
    path = tmp_path / "a.beton"
    write_beton(path, images_NHWC, labels_N)
    before = path.read_bytes()

    def fail(done: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="no space left on the device"):
        write_beton(path, images_NHWC[::-1], labels_N, progress=fail)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
