"""Streamed datasets give the images of resident ones to the bit, look ahead as far as they say, and clean up."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_samples import jpeg_of, random_stored, smooth_image, write_beton, write_images

from fastwi.beton import StoredBeton, StoredImage
from fastwi.beton.format import JPEG, RAW
from fastwi.data.batches import Dataset, whole_images
from fastwi.data.decode import decode_jpeg, fit
from fastwi.data.resident import ResidentDataset, normalisation_table
from fastwi.data.streamed import AHEAD, StreamedDataset
from fastwi.errors import BetonError

CPU = torch.device("cpu")
TABLE = normalisation_table((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def streamed(path: Path, height: int, width: int) -> StreamedDataset:
    beton = StoredBeton(path)
    labels_N = torch.from_numpy(beton.labels_N)
    return StreamedDataset(beton, np.arange(len(beton)), labels_N, TABLE, 10, (height, width, 3))


def raw_pair(path: Path, seed: int, count: int = 60) -> tuple[ResidentDataset, StreamedDataset]:
    """The same random raw images, resident and streamed."""
    generator = np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(1, 12, 2))
    images_NHWC = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    labels_N = generator.integers(0, 10, count)
    write_beton(path, images_NHWC, labels_N)
    resident = ResidentDataset(torch.from_numpy(images_NHWC), torch.from_numpy(labels_N), TABLE, 10)
    return resident, streamed(path, height, width)


def stored_pixels(image: StoredImage, height: int, width: int) -> np.ndarray:
    """What a stored image must come out as, the simplest way."""
    if image.mode == RAW:
        pixels_HWC = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    else:
        pixels_HWC = decode_jpeg(image.data, image.height, image.width)
    return fit(pixels_HWC, height, width)


def batches(dataset: Dataset, order_N: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    for images_DHWC, at_N in dataset.chunks(order_N, size):
        assert images_DHWC.dtype == torch.uint8
        assert images_DHWC.is_contiguous()
        assert at_N.dtype == torch.int64
        assert tuple(images_DHWC.shape[1:]) == dataset.image_shape
        yield images_DHWC[at_N]


def test_streamed_is_resident_for_any_order(tmp_path: Path, seed: int) -> None:
    resident, stream = raw_pair(tmp_path / "a.beton", seed)
    generator = np.random.default_rng(seed)
    assert (len(stream), stream.image_shape, stream.classes) == (60, resident.image_shape, 10)
    for size in (1, int(generator.integers(2, 60)), 60, 100):
        order_N = torch.from_numpy(
            generator.integers(0, 60, int(generator.integers(0, 90)))
        )  # some twice, some never
        expected, found = list(batches(resident, order_N, size)), list(batches(stream, order_N, size))
        assert [len(batch) for batch in found] == [len(order_N[i : i + size]) for i in range(0, len(order_N), size)]
        assert len(expected) == len(found)
        assert all(map(torch.equal, expected, found))


def test_jpegs_and_several_sizes(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 50)
    path = write_images(tmp_path / "a.beton", images, labels_N)
    height, width = (int(side) for side in np.random.default_rng(seed).integers(1, 30, 2))
    stream = streamed(path, height, width)
    expected_NHWC = np.stack([stored_pixels(image, height, width) for image in images])
    order_N = torch.from_numpy(np.random.default_rng(seed).permutation(50))
    found_NHWC = torch.cat(list(batches(stream, order_N, 7)))
    np.testing.assert_array_equal(found_NHWC.numpy(), expected_NHWC[order_N.numpy()])
    np.testing.assert_array_equal(whole_images(stream).numpy(), expected_NHWC)


def test_parts(tmp_path: Path, seed: int) -> None:
    resident, stream = raw_pair(tmp_path / "a.beton", seed)
    at_N = torch.from_numpy(np.random.default_rng(seed).permutation(60)[:20])
    for dataset in (resident, stream):
        part = dataset.part(at_N).part(torch.arange(19, 4, -1))
        assert len(part) == 15
        assert torch.equal(part.labels_N, resident.labels_N[at_N][5:].flip(0))
        assert torch.equal(whole_images(part), resident.images_NHWC[at_N][5:].flip(0))


@pytest.mark.parametrize(("order", "size"), [([0, 60], 4), ([-1], 4), ([2**40], 4), ([1], 0)])
def test_positions_outside_of_the_dataset(tmp_path: Path, seed: int, order: list[int], size: int) -> None:
    _, stream = raw_pair(tmp_path / "a.beton", seed)
    with pytest.raises(ValueError, match=rf"chunks of {size} .* not all in 0 \.\. 59"):
        next(stream.chunks(torch.tensor(order), size))


def decode_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("fastwi-decode")}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that are read, as they are read."""
    found: list[int] = []
    read_one = StoredBeton.read

    def slow(beton: StoredBeton, n: int) -> bytearray:
        time.sleep(0.001)
        found.append(n)
        return read_one(beton, n)

    monkeypatch.setattr(StoredBeton, "read", slow)
    return found


@pytest.mark.parametrize("taken", [0, 1, 3, 7])
def test_leaving_early_leaves_no_work_behind(tmp_path: Path, seed: int, read: list[int], taken: int) -> None:
    _, stream = raw_pair(tmp_path / "a.beton", seed)
    chunks = stream.chunks(torch.arange(60), 8)
    for _ in range(taken):
        next(chunks)
    if taken == 3:
        chunks.close()  # type: ignore[attr-defined]
    else:
        del chunks
    done = len(read)
    assert done <= 8 * (taken + AHEAD) if taken else done == 0
    assert not decode_threads()
    time.sleep(0.02)
    assert len(read) == done


def test_no_more_is_read_ahead_than_said(tmp_path: Path, seed: int, read: list[int]) -> None:
    _, stream = raw_pair(tmp_path / "a.beton", seed)
    order_N = torch.randperm(60)
    chunks = stream.chunks(order_N, 5)
    for used in range(1, 13):
        next(chunks)
        deadline = time.monotonic() + 20
        expected = min(60, 5 * (used + AHEAD))
        while len(read) < expected and time.monotonic() < deadline:  # they are being read now, by other threads
            time.sleep(0.001)
        assert sorted(read) == sorted(order_N[:expected].tolist())


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of open files here")
def test_a_dropped_dataset_closes_its_file(tmp_path: Path, seed: int) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    _, stream = raw_pair(tmp_path / "b.beton", seed)
    part = stream.part(torch.arange(3))
    del stream
    assert len(whole_images(part)) == 3
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del part
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_damaged_image_is_named_and_ends_the_iterator(tmp_path: Path, seed: int) -> None:
    images, labels_N = random_stored(seed, 30, sides=(8, 20))
    for side, cut, said in ((12, 20, "is a damaged JPEG"), (6, 0, "is a JPEG of 6 x 6 pixels, not 12 x 12")):
        data = jpeg_of(smooth_image(np.random.default_rng(seed), side, side))
        images[17] = StoredImage(JPEG, 12, 12, data[: len(data) - cut])
        path = write_images(tmp_path / "a.beton", images, labels_N)
        stream = streamed(path, 12, 12)
        order_N = torch.arange(30)
        with pytest.raises(BetonError, match=rf"^{path}: image 17 {said}.*write the file again"):
            list(stream.chunks(order_N, 4))
        # All others are there.
        assert len(list(stream.chunks(order_N[order_N != 17], 4))) == 8
