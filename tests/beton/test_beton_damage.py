"""Files that are not as they should be: one clear line, never another exception, garbage or a wait."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from beton_samples import Poked
from stored_samples import read_beton

from fastwi.beton.format import JPEG, METADATA_START
from fastwi.errors import BetonError


def refusal(path: Path) -> str:
    """What read_beton, and so StoredBeton, says about `path`."""
    with pytest.raises(BetonError) as caught:
        read_beton(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


def test_what_is_not_a_file(tmp_path: Path) -> None:
    assert "`python -m data_prep`" in refusal(tmp_path / "none.beton")
    assert "not a regular file" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(tmp_path / "file" / "a.beton")
    os.mkfifo(tmp_path / "pipe")  # is not waited for
    assert "not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("content", [b"", b"\2\0\2\0" + bytes(19), b"PK\3\4" * 2000, b"text\n" * 1000, bytes(9999)])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.beton").write_bytes(content)
    said = "version 2" if len(content) > METADATA_START else f"has {len(content)} bytes"
    assert said in refusal(tmp_path / "a.beton")


def test_every_shortened_file_is_refused_and_closed(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    whole = bytes(poked.data)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for length in (*range(0, 40), *range(40, len(whole) - 200, 37), *range(len(whole) - 200, len(whole))):
        poked.data = bytearray(whole[:length])
        refusal(poked.write())
    gc.collect()  # pytest's records of the exceptions go in circles
    assert not before or len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("part", "at", "values", "said"),
    [
        ("header", 0, {"version": 1}, "its version says 1"),
        ("header", 0, {"page_size": 0}, "pages of 0 bytes"),
        ("header", 0, {"page_size": 96}, "pages of 96 bytes"),
        ("header", 0, {"num_samples": 0}, "0 samples"),
        ("header", 0, {"num_samples": 4}, "4 samples"),
        ("header", 0, {"num_samples": 2**64 - 1}, f"{2**64 - 1} samples"),
        ("header", 0, {"num_fields": 0}, "0 fields"),
        ("header", 0, {"num_fields": 3}, "3 fields"),
        ("header", 0, {"alloc_table_ptr": 0}, "allocation table at byte 0"),
        ("header", 0, {"alloc_table_ptr": 2**64 - 1}, f"allocation table at byte {2**64 - 1}"),
        ("fields", 0, {"type_id": 1}, "types (1, 1)"),
        ("fields", 1, {"type_id": 0}, "types (2, 0)"),
        ("images", 2, {"mode": 9}, "image 2 is neither raw nor a JPEG (mode 9"),
        ("images", 2, {"height": 0}, "image 2 has no pixels"),
        ("images", 3, {"mode": JPEG, "height": 8192, "width": 8193}, "image 3 has too many pixels"),
        ("images", 3, {"width": 4}, "image 3 has another number of bytes (mode 1, 4 x 4 pixels, 36 bytes"),
        ("images", 1, {"data_ptr": 2**64 - 1}, "image 1 is not in the allocation table"),
        ("table", 2, {"ptr": 0}, "image 2 is not in the allocation table"),
        ("table", 2, {"sample_id": 3}, "is not in the allocation table"),
        ("table", 2, {"size": 35}, "image 2 has another number of bytes"),
        ("table", 2, {"size": 2**64 - 1}, "image 2 has another number of bytes"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, part: str, at: int, values: dict[str, int], said: str) -> None:
    poked = Poked(tmp_path)
    assert np.array_equal(read_beton(poked.write()).images_NHWC, poked.images_NHWC)
    for name, value in values.items():
        poked.part(part)[name][at] = value
    assert said in refusal(poked.write())


@pytest.mark.parametrize(
    ("n", "start", "size", "mode"),
    [
        (1, 24, 36, 1),  # within the header
        (0, METADATA_START + 5 * 24 - 1, 36, 1),
        (3, "image 1", 36, 1),
        (0, None, 65, JPEG),  # one byte of image 1
        (4, None, 65, JPEG),  # one byte of the allocation table
        (0, 2**63, 36, 1),
        (0, None, 0, JPEG),
        (0, None, 2**63, JPEG),
    ],
)
def test_images_that_lie_where_they_cannot(
    tmp_path: Path, n: int, start: int | str | None, size: int, mode: int
) -> None:
    """start: a byte, or None where the image is already."""
    poked = Poked(tmp_path)
    images, table = poked.part("images"), poked.part("table")
    place = table["ptr"][1 if start == "image 1" else n] if not isinstance(start, int) else start
    images["data_ptr"][n] = table["ptr"][n] = place
    images["mode"][n], table["size"][n] = mode, size
    said = "has another number of bytes" if size in (0, 2**63) else "lies where other data are"
    assert said in refusal(poked.write())


def test_a_jpeg_may_fill_its_page(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    poked.part("images")["mode"][4], poked.part("table")["size"][4] = JPEG, 64
    assert "holds JPEGs" in refusal(poked.write())


def test_any_flipped_bit_of_the_header_is_refused(tmp_path: Path) -> None:
    """Every number of the header is tied to another one or to the size of the file."""
    poked = Poked(tmp_path)
    for bit in range(8 * 24):
        poked.data[bit // 8] ^= 1 << bit % 8
        refusal(poked.write())
        poked.data[bit // 8] ^= 1 << bit % 8
