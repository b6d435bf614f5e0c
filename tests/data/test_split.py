"""open_split: which kind of dataset, of which images and labels; and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_samples import read_beton, write_beton
from various import various_set

import fastwi.data.split
from data_prep.memory import write_memory
from fastwi.beton import StoredBeton
from fastwi.config.schema import DataConfig
from fastwi.data.batches import Dataset, whole_images
from fastwi.data.card import read_card, with_checksum
from fastwi.data.decode import fit
from fastwi.data.resident import ResidentDataset, even_subset, normalisation_table
from fastwi.data.split import fits_memory, free_host_bytes, open_split
from fastwi.data.streamed import StreamedDataset
from fastwi.errors import UserError

CPU = torch.device("cpu")


def opened(path: Path, split: str = "train", **options: object) -> Dataset:
    return open_split(path, split, read_card(path), DataConfig(path=str(path), **options), CPU)


@pytest.fixture
def digits(digits_directory: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(digits_directory, tmp_path / "digits"))


@pytest.fixture
def various(tmp_path: Path, seed: int) -> Path:
    return various_set(tmp_path / "various", seed)


@pytest.mark.parametrize("split", ["train", "test"])
def test_raw_sets_are_resident_unless_memory_is_short(
    digits_directory: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    beton = read_beton(digits_directory / f"{split}.beton")
    # Both splits are normalised with the training images' mean and deviation.
    pixels = read_beton(digits_directory / "train.beton").images_NHWC.reshape(-1, 3) / 255.0
    v_256 = np.arange(256) / 255.0
    table_C256 = (v_256 - pixels.mean(0)[:, None]) / pixels.std(0)[:, None]
    kinds = {"auto": ResidentDataset, "resident": ResidentDataset, "streamed": StreamedDataset}
    for free, auto in ((free_host_bytes, ResidentDataset), (lambda: 1 << 10, StreamedDataset)):
        monkeypatch.setattr(fastwi.data.split, "free_host_bytes", free)
        for streaming, kind in (kinds | {"auto": auto}).items():
            dataset = opened(digits_directory, split, streaming=streaming)
            assert type(dataset) is kind
            images_NHWC = whole_images(dataset)
            assert images_NHWC.is_contiguous()
            assert (images_NHWC.dtype, dataset.labels_N.dtype) == (torch.uint8, torch.int64)
            np.testing.assert_array_equal(images_NHWC.numpy(), beton.images_NHWC)
            np.testing.assert_array_equal(dataset.labels_N.numpy(), beton.labels_N)
            np.testing.assert_allclose(dataset.table_C256.numpy(), table_C256, rtol=1e-6, atol=1e-6)
            assert (len(dataset), dataset.classes, dataset.image_shape) == (len(beton.labels_N), 10, (16, 16, 3))


def test_half_of_the_free_memory_is_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, fits in ((2000, True), (1999, False)):
        monkeypatch.setattr(fastwi.data.split, "free_host_bytes", lambda free=free: free)
        assert fits_memory(1000, CPU) is fits
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1 << 40))
        monkeypatch.setattr(fastwi.data.split, "free_host_bytes", lambda: 1 << 20)
        assert fits_memory(1000, torch.device("cuda")) is fits


@pytest.mark.parametrize(
    ("groups", "limits", "free"),
    [
        ("0::/", {"memory.max": "max"}, 4096),
        ("0::/", {"memory.max": "5000"}, 4096),
        ("0::/", {"memory.max": "1000"}, 1000),
        ("0::/job/step", {"job/step/memory.max": "max", "job/memory.max": "1000"}, 1000),  # as SLURM nests them
        ("0::/job/step", {"job/step/memory.max": "900", "job/memory.max": "1000"}, 900),
        ("0::/job", {"other/memory.max": "900"}, 4096),
        ("5:cpu,memory:/a/b\n1:cpu:/c\n0::/", {"memory/a/memory.limit_in_bytes": "1000"}, 1000),
        ("5:memory:/not/here", {"memory/memory.limit_in_bytes": "1000"}, 1000),  # a container sees its own alone
        ("5:memory:/a", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, 4096),
        ("1:cpu:/a", {"a/memory.max": "1000", "memory/a/memory.limit_in_bytes": "1000"}, 4096),
    ],
)
def test_free_memory_is_within_the_limits_of_control_groups(tmp_path: Path, groups, limits, free) -> None:
    texts = {f"sys/fs/cgroup/{name}": limit for name, limit in limits.items()}
    texts |= {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4 kB", "proc/self/cgroup": groups}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert free_host_bytes(tmp_path) == free


def test_free_memory_of_this_machine(tmp_path: Path) -> None:
    assert 1 << 20 < free_host_bytes() <= 1 << 62
    assert free_host_bytes(tmp_path) == 1 << 62  # a system that says nothing


@pytest.mark.parametrize("streaming", ["resident", "streamed"])
def test_a_subset_is_of_the_split(digits_directory: Path, streaming: str) -> None:
    whole, card = opened(digits_directory), read_card(digits_directory)
    part = opened(digits_directory, train_images=103, streaming=streaming)
    chosen_N = even_subset(whole.labels_N.numpy(), 103)
    assert len(chosen_N) == len(part) == 103
    assert torch.equal(whole_images(part), whole.images_NHWC[chosen_N])
    assert torch.equal(part.labels_N, whole.labels_N[chosen_N])
    assert torch.equal(part.table_C256, normalisation_table(card.mean, card.std))


def test_even_subset(seed):
    generator = np.random.default_rng(seed)
    labels_N = generator.permutation(np.repeat(np.arange(7), generator.integers(20, 40, 7)))
    previous: set[int] = set()
    for images in (1, 6, 7, 50, 140):
        chosen = even_subset(labels_N, images)
        counts = np.bincount(labels_N[chosen], minlength=7)
        assert counts.sum() == images == len(np.unique(chosen))
        assert counts.max() - counts.min() <= 1
        np.testing.assert_array_equal(chosen, np.sort(chosen))
        np.testing.assert_array_equal(chosen, even_subset(labels_N, images))
        assert previous <= set(chosen.tolist())
        previous = set(chosen.tolist())
    np.testing.assert_array_equal(even_subset(labels_N, len(labels_N)), np.arange(len(labels_N)))
    assert even_subset(np.arange(20) % 3, 5).tolist() == [3, 7, 9, 14, 16]  # recorded: results depend on it
    few = even_subset(np.array([0] * 30 + [1] * 2 + [2] * 30), 22)
    assert [int((few < 30).sum()), int((few >= 32).sum())] == [10, 10]  # all of a class that is too small
    assert few[9] > 9  # drawn, not the first ones


def test_normalisation_table(seed):
    generator = np.random.default_rng(seed)
    mean, std = generator.uniform(0, 1, 3), generator.uniform(0.05, 0.5, 3)
    std[1], std[2] = 0, 0.001  # a channel that never varies is centred only
    table_C256 = normalisation_table(tuple(mean), tuple(std))
    std[1] = 1
    expected_C256 = ((np.arange(256) / 255 - mean[:, None]) / std[:, None]).astype(np.float32)
    assert table_C256.dtype == torch.float32
    np.testing.assert_array_equal(table_C256.numpy(), expected_C256)


def test_several_sizes_take_the_cards_or_the_asked_one(various: Path) -> None:
    for size, shape in ((0, (20, 20, 3)), (11, (11, 11, 3))):
        stream = opened(various, image_size=size)
        assert type(stream) is StreamedDataset
        assert stream.image_shape == shape
        resident = opened(various, image_size=size, streaming="resident")
        assert type(resident) is ResidentDataset
        assert torch.equal(whole_images(stream), resident.images_NHWC)


def test_a_raw_set_can_be_resized(digits_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is in memory where it fits after that."""
    before = opened(digits_directory, "test")
    expected_NHWC = np.stack([fit(image.numpy(), 9, 9) for image in whole_images(before)])
    for streaming in ("auto", "resident", "streamed"):
        dataset = opened(digits_directory, "test", image_size=9, streaming=streaming)
        np.testing.assert_array_equal(whole_images(dataset).numpy(), expected_NHWC)
    monkeypatch.setattr(fastwi.data.split, "free_host_bytes", lambda: 2 * 360 * 9 * 9 * 3)
    assert type(opened(digits_directory, "test", image_size=9)) is ResidentDataset
    assert type(opened(digits_directory, "test", image_size=10)) is StreamedDataset


@pytest.mark.parametrize("streaming", ["auto", "resident", "streamed"])
def test_images_that_are_not_square_stay_as_they_are(tmp_path: Path, seed: int, streaming: str) -> None:
    generator = np.random.default_rng(seed)
    images_NHWC, labels_N = generator.integers(0, 256, (6, 5, 8, 3), dtype=np.uint8), np.arange(6)
    data = write_memory((images_NHWC, labels_N), (images_NHWC, labels_N), tmp_path)
    dataset = opened(data, streaming=streaming)
    assert dataset.image_shape == (5, 8, 3)
    np.testing.assert_array_equal(whole_images(dataset).numpy(), images_NHWC)


def refused(path: Path, said: str, split: str = "train", **options: object) -> None:
    with pytest.raises(UserError, match=rf"{split}\.{said}"):
        whole_images(opened(path, split, **options))


def change_card(path: Path, **changes: object) -> None:
    card = json.loads((path / "card.json").read_text())
    (path / "card.json").write_text(json.dumps(with_checksum({**card, **changes})))


@pytest.mark.parametrize(
    ("change", "resident", "streamed"),
    [
        ("pixel", r"not the images and labels that card\.json was written for", "image 700 is not the one"),
        ("label", r"not the images and labels that card\.json was written for", "not the labels"),
        ("shape", r"holds images of other sizes than 16 x 16, as card\.json says", "holds images of other sizes"),
        ("count", r"1436 images, but card\.json says 1437", r"1436 images, but card\.json says 1437"),
        ("negative", r"labels outside 0 \.\. 9", r"labels outside 0 \.\. 9"),
        ("large", r"labels outside 0 \.\. 9", r"labels outside 0 \.\. 9"),
        ("gone", "cannot be read", "cannot be read"),
    ],
)
def test_a_beton_that_was_replaced_under_its_card_is_refused(
    digits: Path, change: str, resident: str, streamed: str
) -> None:
    path = digits / "train.beton"
    beton = read_beton(path)
    images_NHWC, labels_N = beton.images_NHWC, beton.labels_N
    if change == "pixel":
        images_NHWC[700, 3, 4, 1] ^= 1
    elif change == "shape":
        images_NHWC = images_NHWC[:, :-1]
    elif change == "count":
        images_NHWC, labels_N = images_NHWC[:-1], labels_N[:-1]
    else:
        labels_N[700] = {"label": (labels_N[700] + 1) % 10, "negative": -1, "large": 10}.get(change, 0)
    path.unlink()
    if change != "gone":
        write_beton(path, images_NHWC, labels_N)
    for streaming, said in (("resident", resident), ("streamed", streamed)):
        refused(digits, f"beton: {said}", streaming=streaming)


def test_cards_of_other_betons_are_refused(various: Path) -> None:
    card = json.loads((various / "card.json").read_text())
    change_card(various, sizes="one")
    refused(various, r"beton: holds images of other sizes than 20 x 20, as card\.json says")
    change_card(various, sizes=card["sizes"], encoding="raw")
    refused(various, r"beton: holds JPEGs, but card\.json says raw")


def flipped(path: Path, place: int, bit: int) -> None:
    """Flip one bit of a file, where it lies."""
    with open(path, "r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << bit]))


def used_places(path: Path) -> np.ndarray:
    """Every byte of a beton but the empty rest of its pages."""
    beton, size = StoredBeton(path), path.stat().st_size
    used = np.zeros(size, bool)
    used[: 24 + 2 * 1041 + 24 * len(beton)] = used[size - 24 * len(beton) :] = True
    for start, stored in zip(beton.pointers_N, beton.sizes_N, strict=True):
        used[start : start + stored] = True
    return np.flatnonzero(used)


@pytest.mark.parametrize("streaming", ["streamed", "resident"])
def test_a_flipped_bit_of_a_stored_image_is_refused(various: Path, seed: int, streaming: str) -> None:
    """Of a JPEG that decodes as well as before, of pixels, of a number: nothing of a streamed set is believed."""
    generator = np.random.default_rng(seed)
    path = various / "train.beton"
    dataset = opened(various)
    expected, labels_N = whole_images(dataset), dataset.labels_N
    beton = StoredBeton(path)
    for n in range(len(beton)):
        place, bit = int(beton.pointers_N[n] + beton.sizes_N[n] // 2), int(generator.integers(8))
        flipped(path, place, bit)
        refused(various, rf"beton: image {n} is not the one .* data_prep", streaming=streaming)
        with pytest.raises(UserError, match=rf"image {n} is not the one"):  # between two epochs
            whole_images(dataset)
        flipped(path, place, bit)
    assert torch.equal(whole_images(dataset), expected)
    found = 0
    for place in generator.choice(used_places(path), 80).tolist():
        flipped(path, place, bit := int(generator.integers(8)))
        try:
            again = opened(various, streaming=streaming)
            assert torch.equal(whole_images(again), expected)
            assert torch.equal(again.labels_N, labels_N)
        except UserError:
            found += 1
        flipped(path, place, bit)
    assert found > 40  # names of fields, and the order of records in the table, are free


def test_digests_that_are_missing_or_others_are_refused(digits: Path, seed: int) -> None:
    path = digits / "train.digests"
    whole = path.read_bytes()
    generator = np.random.default_rng(seed)
    changed = bytearray(whole)
    changed[int(generator.integers(len(whole)))] ^= 1 << int(generator.integers(8))
    for content in (bytes(changed), whole[:-1], whole[:-24], b"", (digits / "test.digests").read_bytes()):
        path.write_bytes(content)
        refused(digits, r"digests: not the digests .*card\.json.* data_prep", streaming="streamed")
    path.unlink()
    refused(digits, "digests: .* data_prep", streaming="streamed")
    # All of a resident set is held to the card itself.
    assert type(opened(digits)) is ResidentDataset


def test_an_ffcv_that_cannot_be_imported(digits_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ffcv.libffcv", None)
    said = r"data\.decoder: ffcv cannot be imported .*fastwi\.doctor.*data\.decoder: auto"
    with pytest.raises(UserError, match=said):
        opened(digits_directory, streaming="streamed", decoder="ffcv")
