"""The digests of a beton's images: the bytes of their file, what they distinguish, and what a reader refuses."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from stored_samples import random_stored, write_digests, write_stored

from fastwi.beton import StoredBeton
from fastwi.beton.format import JPEG, RAW
from fastwi.beton.image_digests import ImageDigests, image_digest
from fastwi.errors import BetonError


def test_the_file_is_as_it_is_described(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 7)
    digests = write_digests(tmp_path / "a.digests", images, labels_N)
    expected = b""
    for image, label in zip(images, labels_N.tolist(), strict=True):
        numbers = struct.pack("<5q", image.mode, image.height, image.width, len(image.data), label)
        expected += struct.pack("<q", label) + hashlib.blake2b(numbers + image.data, digest_size=16).digest()
    assert (tmp_path / "a.digests").read_bytes() == expected
    assert digests.sha256 == hashlib.sha256(expected).hexdigest()
    again = ImageDigests.read(tmp_path / "a.digests", digests.sha256)
    np.testing.assert_array_equal(again.labels_N, labels_N)
    assert [again[n] for n in range(7)] == [digests[n] for n in range(7)]


def test_all_that_is_said_of_an_image_counts() -> None:
    pixels = bytes(range(24))
    found = [
        image_digest(RAW, 2, 4, 3, pixels),
        image_digest(JPEG, 2, 4, 3, pixels),
        image_digest(RAW, 4, 2, 3, pixels),
        image_digest(RAW, 2, 4, 2, pixels),
        image_digest(RAW, 2, 4, 3, pixels[:-1]),
        image_digest(RAW, 2, 4, 3, pixels[:-1] + b"\x16"),
    ]
    assert len(set(found)) == len(found)
    assert image_digest(RAW, 2, 4, 3, memoryview(bytearray(pixels))) == found[0]


def test_a_beton_is_held_to_its_digests(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 12)
    path = write_stored(tmp_path / "a.beton", images, labels_N)
    digests = write_digests(tmp_path / "a.digests", images, labels_N)
    beton = StoredBeton(path)
    beton.hold_to(digests)
    assert [beton.read(n) for n in range(12)] == [image.data for image in images]
    with pytest.raises(BetonError, match=r"a\.beton: image 5 is not the one"):
        beton.check(5, images[5].data[:-1])
    with pytest.raises(BetonError, match=r"a\.beton: image 5 is not the one"):
        beton.check(5, images[6].data)
    # Two images with their labels exchanged, and one left out.
    order = [1, 0, *range(2, 12)]
    write_stored(path, [images[n] for n in order], labels_N)
    swapped = StoredBeton(path)
    swapped.hold_to(digests)
    with pytest.raises(BetonError, match=r"a\.beton: image 0 is not the one"):
        swapped.read(0)
    write_stored(path, images[:-1], labels_N[:-1])
    with pytest.raises(BetonError, match=r"a\.beton: not the labels"):
        StoredBeton(path).hold_to(digests)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.digests").mkdir()
    for name in ("a.digests", "none.digests"):
        with pytest.raises(BetonError, match=rf"{name}: .*missing.*data_prep") as caught:
            ImageDigests.read(tmp_path / name, "0" * 64)
        assert "\n" not in str(caught.value)
