"""StoredBeton gives back what was stored, and digests are of the content and of nothing else."""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from beton_samples import Poked, random_split
from stored_samples import random_stored, read_beton, write_beton, write_digests, write_images

from fastwi.beton import StoredBeton, StoredImage, content_sha256
from fastwi.beton.digests import read_digests
from fastwi.beton.format import RAW
from fastwi.errors import BetonError


def test_what_was_stored_comes_back(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 40)
    beton = StoredBeton(write_images(tmp_path / "a.beton", images, labels_N))
    assert len(beton) == 40
    np.testing.assert_array_equal(beton.labels_N, labels_N)
    for n in np.random.default_rng(seed).permutation(40):
        image = images[n]
        assert beton.read(n) == image.data
        assert (int(beton.modes_N[n]), *beton.size(n)) == (image.mode, image.height, image.width)
    assert beton.one_size is None
    assert not beton.all_raw
    with pytest.raises(BetonError, match="JPEGs or images of several sizes"):
        beton.read_raw()
    for height, width in ((1, 2), (2, 1)):
        several = [StoredImage(RAW, 1, 1, bytes(3)), StoredImage(RAW, height, width, bytes(6))]
        raw = StoredBeton(write_images(tmp_path / "b.beton", several, labels_N[:2]))
        assert (raw.all_raw, raw.one_size) == (True, None)
        with pytest.raises(BetonError, match="JPEGs or images of several sizes"):
            raw.read_raw()


def test_a_table_in_another_order_is_read(tmp_path: Path) -> None:
    """FFCV's workers list images in the order in which each wrote its own; and images that lie in another one."""
    poked = Poked(tmp_path)
    table, images, order = poked.part("table"), poked.part("images"), [3, 0, 4, 1, 2]
    table[:] = table[order]
    assert np.array_equal(read_beton(poked.write()).images_NHWC, poked.images_NHWC)
    images["data_ptr"] = images["data_ptr"][order]
    table["ptr"] = images["data_ptr"][table["sample_id"]]
    assert np.array_equal(read_beton(poked.write()).images_NHWC, poked.images_NHWC[order])


def test_content_sha256_is_the_documented_one_of_arrays_and_files(tmp_path: Path) -> None:
    images_NHWC, labels_N = random_split(30, 5, 7)
    head = b"images uint8 [30,5,7,3] labels int64\n"
    expected = hashlib.sha256(head + images_NHWC.tobytes() + labels_N.astype("<i8").tobytes()).hexdigest()
    assert content_sha256(images_NHWC, labels_N) == expected
    assert content_sha256(np.asfortranarray(images_NHWC), labels_N.astype(np.int16)) == expected
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N, page_size=1024)
    beton = StoredBeton(tmp_path / "a.beton")
    assert (beton.all_raw, beton.one_size) == (True, (5, 7))
    assert b"".join(beton.read(n) for n in range(30)) == read_beton(tmp_path / "a.beton").images_NHWC.tobytes()
    assert beton.sha256() == expected


def test_the_digest_of_other_files_is_the_documented_one(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 9)
    images.append(StoredImage(RAW, 50, 50, bytes(7500)))  # so that sizes differ for sure
    labels_N = np.append(labels_N, 3)
    expected = hashlib.sha256(b"stored images [10] labels int64\n")
    for image in images:
        expected.update(np.array([image.mode, image.height, image.width, len(image.data)], "<i8").tobytes())
        expected.update(image.data)
    expected.update(labels_N.astype("<i8").tobytes())
    # Where the images lie in the file is not content.
    for largest in (0, 1 << 23):
        written = write_images(tmp_path / "a.beton", images, labels_N, largest)
        assert StoredBeton(written).sha256() == expected.hexdigest()


def test_the_file_of_digests_is_as_it_is_described(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 7)
    path = tmp_path / "a.digests"
    sha256 = write_digests(path, images, labels_N)
    expected = b""
    for image, label in zip(images, labels_N.tolist(), strict=True):
        numbers = struct.pack("<5q", image.mode, image.height, image.width, len(image.data), label)
        expected += struct.pack("<q", label) + hashlib.blake2b(numbers + image.data, digest_size=16).digest()
    assert path.read_bytes() == expected
    assert sha256 == hashlib.sha256(expected).hexdigest()
    assert read_digests(path, sha256).tobytes() == expected
    path.write_bytes(expected[:-1])
    for place in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(BetonError, match=rf"{place}: .*data_prep"):
            read_digests(place, sha256)


def test_a_beton_is_held_to_its_digests(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 12)
    digests_N = read_digests(tmp_path / "a.digests", write_digests(tmp_path / "a.digests", images, labels_N))

    def held(images: list[StoredImage], labels_N: np.ndarray) -> StoredBeton:
        beton = StoredBeton(write_images(tmp_path / "a.beton", images, labels_N))
        beton.hold_to(digests_N)
        return beton

    beton = held(images, labels_N)
    assert [beton.read(n) for n in range(12)] == [image.data for image in images]
    swapped = held([images[n] for n in (1, 0, *range(2, 12))], labels_N)
    with pytest.raises(BetonError, match=r"a\.beton: image 0 is not the one"):
        swapped.read(0)
    assert swapped.read(2) == images[2].data
    for other_N, count in ((labels_N[:-1], 11), ((labels_N + 1) % 10, 12)):
        with pytest.raises(BetonError, match=r"a\.beton: not the labels"):
            held(images[:count], other_N)


def test_a_file_cut_short_while_it_is_open(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 20)
    path = write_images(tmp_path / "a.beton", images, labels_N)
    beton = StoredBeton(path)
    os.truncate(path, int(beton.pointers_N[7]) + len(images[7].data) // 2)
    assert beton.read(6) == images[6].data
    for n in (7, 8, 19):
        with pytest.raises(BetonError, match=f"ends before image {n} does; the file is damaged or cut short"):
            beton.read(n)


def test_a_file_that_another_one_replaces_is_read_on(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 5)
    beton = StoredBeton(write_images(tmp_path / "a.beton", images, labels_N))
    os.replace(write_images(tmp_path / "c.beton", images[::-1], labels_N), tmp_path / "a.beton")
    assert [beton.read(n) for n in range(5)] == [image.data for image in images]
    beton.close()
    beton.close()
    with pytest.raises(ValueError, match="closed"):
        beton.read(1)
