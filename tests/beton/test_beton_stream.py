"""StoredBeton gives back what was stored, without reading outside of the file."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from beton_samples import random_split
from stored_samples import random_stored, write_stored

from fastwi.beton import (
    StoredBeton,
    StoredImage,
    content_sha256,
    read_beton,
    stored_sha256,
    write_beton,
)
from fastwi.beton.format import ALLOCATION, RAW
from fastwi.errors import BetonError


def test_what_was_stored_comes_back(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 40)
    beton = StoredBeton(write_stored(tmp_path / "a.beton", images, labels_N))
    assert len(beton) == 40
    np.testing.assert_array_equal(beton.labels_N, labels_N)
    for n in np.random.default_rng(seed).permutation(40):
        image = images[n]
        assert beton.read(n) == image.data
        assert (int(beton.modes_N[n]), *beton.size(n)) == (image.mode, image.height, image.width)
    assert beton.one_size is None
    assert not beton.all_raw


def test_a_raw_beton_is_read_as_read_beton_does(tmp_path: Path, seed: int) -> None:
    images_NHWC, labels_N = random_split(30, 5, 7, seed)
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N, page_size=1024)
    beton = StoredBeton(tmp_path / "a.beton")
    assert beton.all_raw
    assert beton.one_size == (5, 7)
    assert b"".join(beton.read(n) for n in range(30)) == read_beton(tmp_path / "a.beton").images_NHWC.tobytes()
    assert stored_sha256(beton) == content_sha256(images_NHWC, labels_N)


def test_the_digest_is_the_documented_one(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 9)
    images.append(StoredImage(RAW, 50, 50, bytes(7500)))  # so that sizes differ for sure
    labels_N = np.append(labels_N, 3)
    expected = hashlib.sha256(b"stored images [10] labels int64\n")
    for image in images:
        expected.update(np.array([image.mode, image.height, image.width, len(image.data)], "<i8").tobytes())
        expected.update(image.data)
    expected.update(labels_N.astype("<i8").tobytes())
    first = StoredBeton(write_stored(tmp_path / "a.beton", images, labels_N))
    assert stored_sha256(first) == expected.hexdigest()
    # Where the images lie in the file is not content.
    spread = StoredBeton(write_stored(tmp_path / "b.beton", images, labels_N, largest=1 << 23))
    assert stored_sha256(spread) == expected.hexdigest()
    last = bytes([images[4].data[-1] ^ 1])
    images[4] = StoredImage(images[4].mode, images[4].height, images[4].width, images[4].data[:-1] + last)
    changed = StoredBeton(write_stored(tmp_path / "c.beton", images, labels_N))
    assert stored_sha256(changed) != expected.hexdigest()


def test_a_file_cut_short_while_it_is_open(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 20)
    path = write_stored(tmp_path / "a.beton", images, labels_N)
    beton = StoredBeton(path)
    start = int(np.frombuffer(path.read_bytes()[-20 * ALLOCATION.itemsize :], ALLOCATION)["ptr"][7])
    os.truncate(path, start + len(images[7].data) // 2)
    assert beton.read(6) == images[6].data
    for n in (7, 8, 19):
        with pytest.raises(BetonError, match=f"ends before image {n} does; the file is damaged or cut short"):
            beton.read(n)


def test_a_file_that_another_one_replaces_is_read_on(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 5)
    beton = StoredBeton(write_stored(tmp_path / "a.beton", images, labels_N))
    shutil.copyfile(tmp_path / "a.beton", tmp_path / "b.beton")
    os.replace(write_stored(tmp_path / "c.beton", images[::-1], labels_N), tmp_path / "a.beton")
    assert [beton.read(n) for n in range(5)] == [image.data for image in images]
    (tmp_path / "a.beton").unlink()
    assert beton.read(3) == images[3].data


def test_closed_is_closed(tmp_path: Path, seed: int) -> None:
    beton = StoredBeton(write_stored(tmp_path / "a.beton", *random_stored(seed, 3)))
    beton.close()
    beton.close()
    with pytest.raises(BetonError, match="image 1 is asked for, but the file has been closed"):
        beton.read(1)
