"""Files that are not as they should be: one clear line, never another exception, garbage or a wait."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from beton_samples import METADATA_START, Poked

from fastwi.beton import read_beton
from fastwi.beton.format import JPEG
from fastwi.errors import BetonError


def refusal(path: Path) -> str:
    """What read_beton, and so StoredBeton, says about `path`."""
    with pytest.raises(BetonError) as caught:
        read_beton(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_what_is_not_a_file(tmp_path: Path) -> None:
    assert "does not exist; write it with `python -m data_prep`" in refusal(tmp_path / "none.beton")
    assert "is not a regular file" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(tmp_path / "file" / "a.beton")
    os.mkfifo(tmp_path / "pipe")  # is not waited for
    assert "is not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = Poked(tmp_path).write()
    path.chmod(0)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has 0 bytes"),
        (b"\2\0\2\0" + bytes(19), "has 23 bytes"),
        (b"PK\3\4" * 2000, "version 2"),
        (b"\x89PNG\r\n\x1a\n" * 1000, "version 2"),
        (b"text\n" * 1000, "version 2"),
        (bytes(9999), "version 2"),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.beton").write_bytes(content)
    assert said in refusal(tmp_path / "a.beton")


def test_every_shortened_file_is_refused_and_closed(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    whole = bytes(poked.data)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    lengths = {*range(0, 40), *range(len(whole) - 200, len(whole)), *range(40, len(whole) - 200, 37)}
    for length in sorted(lengths):
        poked.data = bytearray(whole[:length])
        refusal(poked.write())
    gc.collect()  # pytest's records of the exceptions go in circles
    assert not before or len(os.listdir("/proc/self/fd")) == before


def _header(name: str, value: int) -> Callable[[Poked], None]:
    def poke(poked: Poked) -> None:
        poked.header[name] = value

    return poke


def _image(position: int, name: str, value: int) -> Callable[[Poked], None]:
    def poke(poked: Poked) -> None:
        poked.images[name][position] = value

    return poke


def _table(position: int, name: str, value: int) -> Callable[[Poked], None]:
    def poke(poked: Poked) -> None:
        poked.table[name][position] = value

    return poke


def _types(*type_ids: int) -> Callable[[Poked], None]:
    def poke(poked: Poked) -> None:
        poked.fields["type_id"] = type_ids

    return poke


def _huge_jpeg(poked: Poked) -> None:
    for member, value in (("mode", JPEG), ("height", 65535), ("width", 65535)):
        poked.images[member][3] = value


def _both(position: int, place: int) -> Callable[[Poked], None]:
    """An image's place in its record and in the allocation table."""

    def poke(poked: Poked) -> None:
        poked.images["data_ptr"][position] = poked.table["ptr"][position] = place

    return poke


def _all_in_one_place(poked: Poked) -> None:
    poked.images["data_ptr"] = poked.images["data_ptr"][0]
    poked.table["ptr"] = poked.table["ptr"][0]


def _large_jpeg(more: int) -> Callable[[Poked], None]:
    """Image 0 as a JPEG that reaches up to the end of the data and `more` bytes beyond, or is empty."""

    def poke(poked: Poked) -> None:
        poked.images["mode"][0] = JPEG
        rest = int(poked.header["alloc_table_ptr"][0]) - int(poked.table["ptr"][0])
        poked.table["size"][0] = 0 if more < 0 else rest + more

    return poke


@pytest.mark.parametrize(
    ("poke", "said"),
    [
        (_header("version", 1), "its version says 1"),
        (_header("version", 0x0200), "its version says 512"),
        (_header("page_size", 0), "pages have 0 bytes"),
        (_header("page_size", 100), "pages have 100 bytes"),
        (_header("num_samples", 0), "no samples"),
        (_header("num_samples", 10**6), "1000000 samples, more than"),
        (_header("num_samples", 2**64 - 1), "samples, more than"),
        (_header("num_fields", 0), "0 RGB image fields and 0 integer fields"),
        (_header("num_fields", 65535), "65535 fields, more than"),
        (_header("alloc_table_ptr", 0), "allocation table is at byte 0"),
        (_header("alloc_table_ptr", 2**64 - 1), "allocation table is at byte"),
        (_types(2, 2), "2 RGB image fields and 0 integer fields"),
        (_types(1, 1), "0 RGB image fields and 2 integer fields"),
        (_types(2, 255), "field of type 255"),
        (_types(2, 7), "field of type 7"),
        (_types(2, 0), "1 RGB image fields and 0 integer fields"),
        (_image(2, "mode", JPEG), "image 2 is JPEG"),
        (_image(2, "mode", 9), "image 2 is encoded in an unknown way (mode 9)"),
        (_image(3, "width", 4), "no allocation of 48 bytes for image 3"),
        (_image(2, "height", 0), "image 2 is 0 x 3 pixels"),
        (_huge_jpeg, "image 3 is a JPEG of 65535 x 65535 pixels"),
        (_image(1, "data_ptr", 0), "no allocation of 36 bytes for image 1"),
        (_image(1, "data_ptr", 2**64 - 1), "no allocation of 36 bytes for image 1"),
        (_both(1, 24), "image 1 is at byte 24, outside of bytes"),  # within the header
        (_all_in_one_place, "two images overlap"),
        (_large_jpeg(0), "two images overlap"),
        (_large_jpeg(1), "an allocation outside of its data"),
        (_large_jpeg(-1), "no allocation for image 0"),
        (_table(2, "ptr", 2**64 - 1), "an allocation outside of its data"),
        (_table(2, "size", 2**64 - 1), "an allocation outside of its data"),
        (_table(2, "size", 35), "no allocation of 36 bytes for image 2"),
        (_table(2, "sample_id", 3), "no allocation of 36 bytes for image 2"),
        (_table(0, "ptr", 0), "no allocation of 36 bytes for image 0"),
        (lambda poked: poked.data.extend(b"tail"), "ends in 124 bytes of allocation table"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, poke: Callable[[Poked], None], said: str) -> None:
    poked = Poked(tmp_path)
    assert np.array_equal(read_beton(poked.write()).images_NHWC, poked.images_NHWC)
    poke(poked)
    assert said in refusal(poked.write())


def check_any_outcome(poked: Poked) -> bool:
    """Whether the file is read; if so, into arrays no larger than the file. Only BetonError may come out."""
    path = poked.write()
    try:
        beton = read_beton(path)
    except BetonError:
        return False
    assert beton.images_NHWC.nbytes + beton.labels_N.nbytes <= len(poked.data)
    assert beton.images_NHWC.shape[0] == len(beton.labels_N) > 0
    return True


def test_any_flipped_bit_of_the_header(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    whole = bytes(poked.data)
    read = 0
    for bit in range(8 * 24):
        poked.data = bytearray(whole)
        poked.data[bit // 8] ^= 1 << bit % 8
        read += check_any_outcome(poked)
    # Every number of the header is tied to another one or to the size of the file.
    assert read == 0


def test_random_damage_anywhere(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    poked = Poked(tmp_path)
    whole = bytes(poked.data)
    types = 24 + 1041 * np.arange(2)
    table_start = int(poked.header["alloc_table_ptr"][0])
    targets = [
        np.arange(24),
        types,
        np.arange(METADATA_START, METADATA_START + 5 * 24),
        np.arange(table_start, len(whole)),
        np.arange(len(whole)),
    ]
    outcomes = []
    for _ in range(600):
        poked.data = bytearray(whole)
        target = targets[generator.integers(len(targets))]
        for place in generator.choice(target, generator.integers(1, 3)):
            poked.data[place] = generator.integers(256)
        outcomes.append(check_any_outcome(poked))
    assert 0 < sum(outcomes) < len(outcomes)
