"""Files that are not as they should be: one clear line, never another exception, garbage or a wait."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from beton_samples import METADATA_START, Poked

from fastwi.beton import read_beton
from fastwi.errors import BetonError


def refusal(path: Path) -> str:
    """What read_beton says about `path`."""
    with pytest.raises(BetonError) as caught:
        read_beton(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_the_file_to_be_poked_is_valid(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    beton = read_beton(poked.write())
    np.testing.assert_array_equal(beton.images_NHWC, poked.images_NHWC)


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist; write it with `python -m data_prep`" in refusal(tmp_path / "none.beton")
    assert "is not a regular file" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be read (Not a directory)" in refusal(tmp_path / "file" / "a.beton")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = Poked(tmp_path).write()
    path.chmod(0)
    assert "cannot be read (Permission denied)" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"x", b"\2\0\2\0" + bytes(19)])
def test_shorter_than_a_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.beton").write_bytes(content)
    assert f"has {len(content)} bytes, less than a .beton header" in refusal(tmp_path / "a.beton")


@pytest.mark.parametrize("content", [b"PK\3\4" * 2000, b"\x89PNG\r\n\x1a\n" * 1000, b"text\n" * 1000, bytes(9999)])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.beton").write_bytes(content)
    assert "is not a .beton file of version 2" in refusal(tmp_path / "a.beton")


def test_every_shortened_file_is_refused(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    whole = bytes(poked.data)
    lengths = {*range(0, 40), *range(len(whole) - 200, len(whole)), *range(40, len(whole) - 200, 37)}
    for length in sorted(lengths):
        poked.data = bytearray(whole[:length])
        refusal(poked.write())


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


def _all_in_one_place(poked: Poked) -> None:
    poked.images["data_ptr"] = poked.images["data_ptr"][0]
    poked.table["ptr"] = poked.table["ptr"][0]


def _flat(poked: Poked) -> None:
    poked.images["height"] = 0


@pytest.mark.parametrize(
    ("poke", "said"),
    [
        (_header("version", 1), "is not a .beton file of version 2 (its version says 1)"),
        (_header("version", 0x0200), "its version says 512"),
        (_header("page_size", 0), "says pages have 0 bytes"),
        (_header("page_size", 100), "says pages have 100 bytes"),
        (_header("num_samples", 0), "holds no samples"),
        (_header("num_samples", 10**6), "says it has 1000000 samples, more than"),
        (_header("num_samples", 2**64 - 1), "samples, more than"),
        (_header("num_fields", 0), "has 0 RGB image fields and 0 integer fields"),
        (_header("num_fields", 65535), "says it has 65535 fields, more than"),
        (_header("alloc_table_ptr", 0), "says its allocation table is at byte 0"),
        (_header("alloc_table_ptr", 2**64 - 1), "says its allocation table is at byte"),
        (_types(2, 2), "has 2 RGB image fields and 0 integer fields"),
        (_types(1, 1), "has 0 RGB image fields and 2 integer fields"),
        (_types(2, 255), "has a field of type 255"),
        (_types(2, 7), "has a field of type 7"),
        (_types(2, 0), "has 1 RGB image fields and 0 integer fields"),
        (_image(2, "mode", 0), "image 2 is JPEG; write the file with write_mode='raw'"),
        (_image(2, "mode", 9), "image 2 is encoded in an unknown way"),
        (_image(3, "width", 4), "image 3 is 4 x 4, image 0 is 4 x 3"),
        (_flat, "says its images are 0 x 3 pixels"),
        (_image(1, "data_ptr", 0), "says image 1 is at byte 0, outside"),
        (_image(1, "data_ptr", 2**64 - 1), "says image 1 is at byte 18446744073709551615, outside"),
        (_image(4, "data_ptr", 2**63), "says image 4 is at byte 9223372036854775808, outside"),
        (_all_in_one_place, "says that two images overlap"),
        (_table(2, "ptr", 2**64 - 1), "has an allocation outside of its data"),
        (_table(2, "size", 2**64 - 1), "has an allocation outside of its data"),
        (_table(2, "size", 35), "has no allocation of 36 bytes for image 2"),
        (_table(2, "sample_id", 3), "has no allocation of 36 bytes for image 2"),
        (_table(0, "ptr", 0), "has no allocation of 36 bytes for image 0"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, poke: Callable[[Poked], None], said: str) -> None:
    poked = Poked(tmp_path)
    poke(poked)
    assert said in refusal(poked.write())


def test_bytes_behind_the_allocation_table(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    poked.data += b"tail"
    assert "ends in 124 bytes of allocation table, which should be 5 allocations of" in refusal(poked.write())


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
