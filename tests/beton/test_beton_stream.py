"""StoredBeton gives back what was stored, and refuses what is damaged, without reading outside of the file."""

import gc
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from beton_samples import Poked, random_split
from stored_samples import jpeg_of, random_stored, smooth_image, write_stored

from fastwi.beton import StoredBeton, content_sha256, read_beton, stored_sha256, write_beton
from fastwi.beton.format import ALLOCATION, HEADER, JPEG, RAW
from fastwi.beton.stored_writer import StoredImage, write_stored_stream
from fastwi.errors import BetonError


def refusal(path: Path) -> str:
    with pytest.raises(BetonError) as caught:
        StoredBeton(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


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


def test_raw_images_of_one_size_are_stored_as_write_beton_does(tmp_path: Path, seed: int) -> None:
    images_NHWC, labels_N = random_split(700, 32, 33, seed)
    write_beton(tmp_path / "a.beton", images_NHWC, labels_N)
    images = [StoredImage(RAW, 32, 33, image.tobytes()) for image in images_NHWC]
    write_stored(tmp_path / "b.beton", images, labels_N)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


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


def test_pages_are_full_before_the_next_begins(tmp_path: Path) -> None:
    images = [StoredImage(JPEG, 8, 8, bytes([n]) * (900_000 + n)) for n in range(5)]
    path = write_stored(tmp_path / "a.beton", images, np.arange(5))
    data = path.read_bytes()
    table = np.frombuffer(data[-5 * ALLOCATION.itemsize :], ALLOCATION)
    page = 1 << 21
    assert table["ptr"].tolist() == [page, page + 900_000, 2 * page, 2 * page + 900_002, 3 * page]
    assert int(np.frombuffer(data, HEADER, 1)["alloc_table_ptr"][0]) == 4 * page
    assert [StoredBeton(path).read(n) for n in range(5)] == [image.data for image in images]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (StoredImage(RAW, 4, 4, bytes(47)), "image 1: 47 bytes of mode 1"),
        (StoredImage(JPEG, 4, 4, b""), "image 1: 0 bytes of mode 0"),
        (StoredImage(7, 4, 4, bytes(48)), "image 1: 48 bytes of mode 7"),
        (StoredImage(JPEG, 0, 4, bytes(48)), "image 1: 0 x 4 pixels"),
        (StoredImage(JPEG, 4, 65536, bytes(48)), "image 1: 4 x 65536 pixels"),
        (StoredImage(JPEG, 4, 4, bytes((1 << 21) + 1)), "image 1: 2097153 bytes"),
    ],
)
def test_images_that_no_beton_holds(tmp_path: Path, image: StoredImage, said: str) -> None:
    good = StoredImage(RAW, 4, 4, bytes(48))
    with pytest.raises(BetonError, match=said), open(tmp_path / "a", "wb") as stream:
        write_stored_stream(stream, [good, image], np.zeros(2, np.int64), 48)
    with pytest.raises(BetonError, match="1 images for 2 labels"), open(tmp_path / "a", "wb") as stream:
        write_stored_stream(stream, [good], np.zeros(2, np.int64), 48)
    with pytest.raises(BetonError, match="more than 1 images for 1 labels"), open(tmp_path / "a", "wb") as stream:
        write_stored_stream(stream, [good, good], np.zeros(1, np.int64), 48)


@pytest.mark.parametrize(
    ("member", "value", "said"),
    [
        ("mode", 9, "image 2 is encoded in an unknown way (mode 9)"),
        ("height", 0, "says its images are 0 x 3 pixels"),
        ("width", 4, "has no allocation of 48 bytes for image 2"),
        ("data_ptr", 0, "has no allocation of 36 bytes for image 2"),
        ("data_ptr", 2**64 - 1, "has no allocation of 36 bytes for image 2"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, member: str, value: int, said: str) -> None:
    poked = Poked(tmp_path)
    poked.images[member][2] = value
    assert said in refusal(poked.write())


def test_places_outside_of_the_data_and_overlaps(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    poked.images["data_ptr"][1] = poked.table["ptr"][1] = 24  # inside the header
    assert "says image 1 is at byte 24, outside of bytes" in refusal(poked.write())
    poked = Poked(tmp_path)
    # As a JPEG, of whatever size the table says: up to the file's end, across its neighbours.
    poked.images["mode"][0] = JPEG
    poked.table["size"][0] = int(poked.header["alloc_table_ptr"][0]) - int(poked.table["ptr"][0])
    assert "says that two images overlap" in refusal(poked.write())
    poked.table["size"][0] += 1
    assert "has an allocation outside of its data" in refusal(poked.write())
    poked.table["size"][0] = 0
    assert "has no allocation for image 0" in refusal(poked.write())


def test_a_jpeg_that_claims_to_be_huge_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    for member, value in (("mode", JPEG), ("height", 65535), ("width", 65535)):
        poked.images[member][3] = value
    assert "image 3 is a JPEG of 65535 x 65535 pixels, too many" in refusal(poked.write())


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "does not exist; write it with `python -m data_prep`" in refusal(tmp_path / "none.beton")
    assert "is not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "a").write_bytes(b"PK\3\4" * 1000)
    assert "is not a .beton file of version 2" in refusal(tmp_path / "a")


def test_every_shortened_file_is_refused_and_closed(tmp_path: Path) -> None:
    poked = Poked(tmp_path)
    whole = bytes(poked.data)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for length in sorted({*range(0, 40), *range(len(whole) - 150, len(whole)), *range(40, len(whole) - 150, 61)}):
        poked.data = bytearray(whole[:length])
        refusal(poked.write())
    gc.collect()  # pytest's records of the exceptions go in circles
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


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


def test_random_damage_ends_in_an_error_or_in_bytes_of_the_file(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    images = [StoredImage(JPEG, 9, 9, jpeg_of(smooth_image(generator, 9, 9))) for _ in range(3)]
    images += [StoredImage(RAW, 2, 3, bytes(range(18))) for _ in range(3)]
    path = write_stored(tmp_path / "a.beton", images, np.arange(6))
    whole = path.read_bytes()
    used = [*range(24), 24, 1065, *range(2106, 2106 + 6 * 24), *range(len(whole) - 6 * 24, len(whole))]
    outcomes = []
    for _ in range(150):
        data = bytearray(whole)
        for place in generator.choice(used, generator.integers(1, 4)):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            beton = StoredBeton(path)
        except BetonError:
            outcomes.append(False)
            continue
        for n in range(len(beton)):
            assert beton.read(n) in whole + data
        outcomes.append(True)
    assert not all(outcomes)
