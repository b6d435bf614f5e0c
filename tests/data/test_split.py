"""open_split: which kind of dataset, of which size, with which identity; and what it refuses."""

import dataclasses
import importlib.metadata
import json
import operator
import shutil
from pathlib import Path

import numpy as np
import PIL.features
import pytest
import torch
from stored_samples import random_stored, write_digests, write_stored

import fastwi.data.split
from fastwi.beton import StoredBeton, read_beton, write_beton
from fastwi.config.schema import Config, DataConfig
from fastwi.config.write import config_hash
from fastwi.data.batches import Dataset, whole_images
from fastwi.data.card import Card, read_card, with_checksum
from fastwi.data.decode import fit
from fastwi.data.resident import ResidentDataset, load_split
from fastwi.data.split import fits_memory, free_host_bytes, open_split, open_splits
from fastwi.data.streamed import StreamedDataset
from fastwi.errors import BetonError, UserError
from fastwi.experiment.inputs import Inputs

CPU = torch.device("cpu")


def various_set(directory: Path, seed: int) -> Path:
    """A dataset of JPEGs and raw images of several sizes, 20 x 20 the first of them."""
    directory.mkdir()
    contents, digests, counts = {}, {}, {}
    for number, split in enumerate(("train", "test")):
        images, labels_N = random_stored(seed + number, 40, sides=(5, 30))
        first, _ = random_stored(seed + number, 1, sides=(20, 20))
        images = [*first, *images[1:]]
        write_stored(directory / f"{split}.beton", images, labels_N)
        contents[split] = StoredBeton(directory / f"{split}.beton").sha256()
        digests[split] = write_digests(directory / f"{split}.digests", images, labels_N)
        counts[split] = tuple(np.bincount(labels_N, minlength=10).tolist())
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
    classes = tuple("abcdefghij")
    card = Card(
        "various", classes, (20, 20, 3), dict.fromkeys(digests, 40), counts, mean, std, "made for a test", contents,
        digests, "a test", "mixed", "various",
    )  # fmt: skip
    (directory / "card.json").write_text(json.dumps(card.to_json()))
    return directory


def opened(path: Path, split: str = "train", **options: object) -> Dataset:
    return open_split(path, split, read_card(path), DataConfig(path=str(path), **options), CPU)


@pytest.mark.parametrize("split", ["train", "test"])
def test_raw_sets_are_resident_unless_memory_is_short(
    digits_directory: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    expected, _ = load_split(digits_directory, split, CPU)
    kinds = {"auto": ResidentDataset, "resident": ResidentDataset, "streamed": StreamedDataset}
    for free, auto in ((free_host_bytes, ResidentDataset), (lambda: 1 << 10, StreamedDataset)):
        monkeypatch.setattr(fastwi.data.split, "free_host_bytes", free)
        for streaming, kind in (kinds | {"auto": auto}).items():
            dataset = opened(digits_directory, split, streaming=streaming)
            assert type(dataset) is kind
            assert torch.equal(whole_images(dataset), expected.images_NHWC)
            assert torch.equal(dataset.labels_N, expected.labels_N)
            assert torch.equal(dataset.table_C256, expected.table_C256)
            assert dataset.classes == expected.classes


def test_half_of_the_free_memory_is_the_share(digits_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beton = StoredBeton(digits_directory / "test.beton")
    needed = 360 * 16 * 16 * 3
    for free, fits in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(fastwi.data.split, "free_host_bytes", lambda free=free: free)
        assert fits_memory(beton, CPU) is fits
    assert 1 << 20 < free_host_bytes() <= 1 << 62


def test_a_subset_is_the_same_either_way(digits_directory: Path) -> None:
    resident, stream = (opened(digits_directory, train_images=123, streaming=s) for s in ("resident", "streamed"))
    assert torch.equal(whole_images(stream), whole_images(resident))
    assert torch.equal(stream.labels_N, resident.labels_N)
    with pytest.raises(UserError, match=r"data\.train_images: 100000 asked for"):
        opened(digits_directory, train_images=100_000, streaming="streamed")


def test_several_sizes_take_the_cards_or_the_asked_one(tmp_path: Path, seed: int) -> None:
    path = various_set(tmp_path / "various", seed)
    for size, shape in ((0, (20, 20, 3)), (11, (11, 11, 3))):
        stream = opened(path, image_size=size)
        assert type(stream) is StreamedDataset
        assert stream.image_shape == shape
        resident = opened(path, image_size=size, streaming="resident")
        assert type(resident) is ResidentDataset
        assert torch.equal(whole_images(stream), resident.images_NHWC)


def test_a_raw_set_can_be_resized(digits_directory: Path) -> None:
    before = opened(digits_directory, "test")
    expected_NHWC = np.stack([fit(image.numpy(), 9, 9) for image in whole_images(before)])
    for streaming in ("auto", "resident", "streamed"):
        dataset = opened(digits_directory, "test", image_size=9, streaming=streaming)
        np.testing.assert_array_equal(whole_images(dataset).numpy(), expected_NHWC)
    assert type(opened(digits_directory, "test", image_size=16)) is ResidentDataset


def test_root_is_what_a_relative_path_is_relative_to(digits_directory: Path) -> None:
    data = DataConfig(path=digits_directory.name)
    assert len(open_splits(data, CPU, digits_directory.parent)[1]) == 360
    with pytest.raises(UserError, match="no dataset here"):
        open_splits(data, CPU, digits_directory)


def test_cards_and_betons_that_disagree(digits_directory: Path, tmp_path: Path, seed: int) -> None:
    """Sizes and counts of a resident set are tested in test_resident.py."""
    path = Path(shutil.copytree(digits_directory, tmp_path / "digits"))
    train = read_beton(path / "train.beton")
    train.labels_N[9] = (train.labels_N[9] + 1) % 10
    write_beton(path / "train.beton", train.images_NHWC, train.labels_N)
    with pytest.raises(BetonError, match=r"train\.beton: not the labels"):
        opened(path, streaming="streamed")
    various = various_set(tmp_path / "various", seed)
    card = json.loads((various / "card.json").read_text())
    for change, said in (
        ({"sizes": "one"}, r"holds images of other sizes than 20 x 20, as card\.json says"),
        ({"encoding": "raw"}, r"holds JPEGs, but card\.json says raw"),
    ):
        (various / "card.json").write_text(json.dumps(with_checksum({**card, **change})))
        with pytest.raises(UserError, match=rf"train\.beton: {said}"):
            opened(various)


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
    beton.close()
    return np.flatnonzero(used)


@pytest.mark.parametrize("streaming", ["streamed", "resident"])
def test_a_flipped_bit_of_a_stored_image_is_refused(tmp_path: Path, seed: int, streaming: str) -> None:
    """Of a JPEG that decodes as well as before, of pixels, of a number: nothing of a streamed set is believed."""
    generator = np.random.default_rng(seed)
    path = various_set(tmp_path / "various", seed)
    expected, labels_N = whole_images(opened(path)), opened(path).labels_N
    beton = StoredBeton(path / "train.beton")
    places = [int(beton.pointers_N[n] + beton.sizes_N[n] // 2) for n in range(len(beton))]
    for n, place in enumerate(places):
        flipped(path / "train.beton", place, bit := int(generator.integers(8)))
        with pytest.raises(BetonError, match=rf"train\.beton: image {n} is not the one .* data_prep") as caught:
            whole_images(opened(path, streaming=streaming))
        assert "\n" not in str(caught.value)
        flipped(path / "train.beton", place, bit)
    dataset = opened(path)
    assert torch.equal(whole_images(dataset), expected)
    flipped(path / "train.beton", places[11], 0)  # between two epochs
    with pytest.raises(BetonError, match=r"train\.beton: image 11 is not the one"):
        whole_images(dataset)
    flipped(path / "train.beton", places[11], 0)
    refused = 0
    for place in generator.choice(used_places(path / "train.beton"), 80).tolist():
        flipped(path / "train.beton", place, bit := int(generator.integers(8)))
        try:
            dataset = opened(path, streaming=streaming)
            assert torch.equal(whole_images(dataset), expected)
            assert torch.equal(dataset.labels_N, labels_N)
        except UserError:
            refused += 1
        flipped(path / "train.beton", place, bit)
    assert refused > 40  # names of fields, and the order of records in the table, are free


def test_digests_that_are_missing_or_others_are_refused(digits_directory: Path, tmp_path: Path, seed: int) -> None:
    path = Path(shutil.copytree(digits_directory, tmp_path / "digits"))
    whole = (path / "train.digests").read_bytes()
    generator = np.random.default_rng(seed)
    changed = bytearray(whole)
    changed[int(generator.integers(len(whole)))] ^= 1 << int(generator.integers(8))
    for content in (bytes(changed), whole[:-1], whole[:-24], b"", (path / "test.digests").read_bytes()):
        (path / "train.digests").write_bytes(content)
        with pytest.raises(UserError, match=r"train\.digests: not the digests .*card\.json.* data_prep") as caught:
            opened(path, streaming="streamed")
        assert "\n" not in str(caught.value)
    (path / "train.digests").unlink()
    with pytest.raises(UserError, match=r"train\.digests: .* data_prep"):
        opened(path, streaming="streamed")
    # All of a resident set is held to the card itself.
    assert type(opened(path)) is ResidentDataset


def test_an_ffcv_that_cannot_be_imported(digits_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ffcv.libffcv", None)
    with pytest.raises(
        UserError, match=r"data\.decoder: ffcv cannot be imported .*fastwi\.doctor.*data\.decoder: auto"
    ):
        opened(digits_directory, streaming="streamed", decoder="ffcv")


def names(card: Card, **options: object) -> tuple[str, str]:
    """What results of this dataset are filed under: the digest of its contents, and the configuration's hash."""
    config = dataclasses.replace(Config(), data=DataConfig(**options))
    digest = Inputs.of(card, config).digest
    return digest, config_hash(config, digest)


def test_only_what_changes_pixels_changes_the_identity(digits_directory: Path, tmp_path: Path, seed: int) -> None:
    raw = read_card(digits_directory)
    various = read_card(various_set(tmp_path / "various", seed))
    for card in (raw, various):
        plain = names(card)
        assert names(card, streaming="streamed") == names(card, streaming="resident") == plain
        assert names(card, decoder="reference") == plain
        sizes = [plain, names(card, image_size=8), names(card, image_size=9)]
        assert [len(set(kind)) for kind in zip(*sizes, strict=True)] == [3, 3]
    assert names(raw, decoder="ffcv") == names(raw)
    assert all(map(operator.ne, names(various, decoder="ffcv"), names(various)))
    # The size that the images have anyway is no other content.
    assert names(raw, image_size=16)[0] == names(raw)[0]


def test_whatever_is_read_of_a_dataset_is_in_its_identity(digits_directory: Path) -> None:
    raw = read_card(digits_directory)
    nearest = (float(np.nextafter(raw.std[0], 1)), *raw.std[1:])
    more = {split: (*counts, 0) for split, counts in raw.class_counts.items()}
    changes = [
        {"sha256": raw.sha256 | {"test": "0" * 64}},
        {"sha256": raw.sha256 | {"train": "0" * 64}},
        {"mean": nearest},
        {"std": nearest},
        {"image_shape": (8, 32, 3)},
        {"classes": (*raw.classes, "one more"), "class_counts": more},
    ]
    assert len({names(dataclasses.replace(raw, **change)) for change in ({}, *changes)}) == 1 + len(changes)
    # What is only said of it names nothing.
    assert names(dataclasses.replace(raw, name="other", source="other", writer="other")) == names(raw)


@pytest.mark.parametrize(
    ("place", "name", "version", "expected"),
    [
        (PIL, "__version__", "0.0", {"resized", "various", "jpeg"}),
        (PIL.features, "version_feature", lambda _: "0.0", {"various", "jpeg"}),
        (importlib.metadata, "version", lambda _: "0.0", {"ffcv"}),
    ],
)
def test_versions_count_where_the_library_is_at_work(
    digits_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    place: object,
    name: str,
    version: object,
    expected: set[str],
) -> None:
    raw, various = read_card(digits_directory), read_card(various_set(tmp_path / "various", seed))
    jpeg = dataclasses.replace(various, sizes="one")

    def named() -> dict[str, tuple[str, str]]:
        return {
            "raw": names(raw),
            "resized": names(raw, image_size=9),
            "various": names(various),
            "jpeg": names(jpeg),
            "ffcv": names(jpeg, decoder="ffcv"),
        }

    before = named()
    monkeypatch.setattr(place, name, version)
    after = named()
    assert {each for each in before if after[each] != before[each]} == expected
