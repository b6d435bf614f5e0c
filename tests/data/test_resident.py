"""Resident splits: what is on disk comes back, subsets are even, disagreements are said in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastwi.beton import read_beton, write_beton
from fastwi.data.card import with_checksum
from fastwi.data.resident import even_subset, load_split, normalisation_table
from fastwi.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def digits_copy(digits_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_directory, tmp_path / "digits"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_whole_split(digits_directory, split):
    dataset, card = load_split(digits_directory, split, CPU)
    beton = read_beton(digits_directory / f"{split}.beton")
    np.testing.assert_array_equal(dataset.images_NHWC.numpy(), beton.images_NHWC)
    np.testing.assert_array_equal(dataset.labels_N.numpy(), beton.labels_N)
    assert (len(dataset), dataset.classes, dataset.image_shape) == (card.counts[split], 10, (16, 16, 3))
    assert dataset.images_NHWC.is_contiguous()
    assert (dataset.images_NHWC.dtype, dataset.labels_N.dtype) == (torch.uint8, torch.int64)
    # Both splits are normalised with the training images' mean and deviation.
    pixels = read_beton(digits_directory / "train.beton").images_NHWC.reshape(-1, 3) / 255.0
    v_256 = np.arange(256) / 255.0
    expected_C256 = (v_256 - pixels.mean(0)[:, None]) / pixels.std(0)[:, None]
    np.testing.assert_allclose(dataset.table_C256.numpy(), expected_C256, rtol=1e-6, atol=1e-6)


def test_subset_is_of_the_split(digits_directory):
    whole, _ = load_split(digits_directory, "train", CPU)
    part, _ = load_split(digits_directory, "train", CPU, 103)
    chosen_N = even_subset(whole.labels_N.numpy(), 103)
    assert torch.equal(part.images_NHWC, whole.images_NHWC[chosen_N])
    assert torch.equal(part.labels_N, whole.labels_N[chosen_N])
    assert torch.equal(part.table_C256, whole.table_C256)
    counts = torch.bincount(part.labels_N, minlength=10)
    assert (len(part), counts.max() - counts.min()) == (103, 1)


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


def test_even_subset_takes_all_of_a_class_that_is_too_small():
    labels_N = np.array([0] * 30 + [1] * 2 + [2] * 30)
    chosen = even_subset(labels_N, 22)
    assert np.bincount(labels_N[chosen]).tolist() == [10, 2, 10]
    assert chosen[9] > 9  # drawn, not the first ones


def test_normalisation_table(seed):
    generator = np.random.default_rng(seed)
    mean, std = generator.uniform(0, 1, 3), generator.uniform(0.05, 0.5, 3)
    table_C256 = normalisation_table(tuple(mean), tuple(std))
    expected_C256 = ((np.arange(256) / 255 - mean[:, None]) / std[:, None]).astype(np.float32)
    assert table_C256.dtype == torch.float32
    np.testing.assert_array_equal(table_C256.numpy(), expected_C256)
    flat_C256 = normalisation_table((0.5,), (0.0,))  # a channel that never varies is centred only
    np.testing.assert_array_equal(flat_C256.numpy()[0], (np.arange(256) / 255 - 0.5).astype(np.float32))


def test_what_is_missing(tmp_path, digits_copy):
    with pytest.raises(UserError, match="no dataset here"):
        load_split(tmp_path / "nothing", "train", CPU)
    with pytest.raises(UserError, match=r"data\.test_images: 100000 asked for"):
        load_split(digits_copy, "test", CPU, 100_000)
    (digits_copy / "test.beton").unlink()
    with pytest.raises(UserError, match=r"test\.beton"):
        load_split(digits_copy, "test", CPU)


def test_labels_out_of_range(digits_copy):
    card = json.loads((digits_copy / "card.json").read_text())
    card["classes"].pop()
    for counts in card["class_counts"].values():
        last = counts.pop()
        counts[-1] += last
    (digits_copy / "card.json").write_text(json.dumps(with_checksum(card)))
    with pytest.raises(UserError, match=r"train\.beton: labels outside 0 \.\. 8"):
        load_split(digits_copy, "train", CPU)
    beton = read_beton(digits_copy / "test.beton")
    beton.labels_N[3] = -1
    write_beton(digits_copy / "test.beton", beton.images_NHWC, beton.labels_N)
    with pytest.raises(UserError, match=r"test\.beton: labels outside 0 \.\. 8"):
        load_split(digits_copy, "test", CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("pixel", r"not the images and labels that card\.json was written for"),
        ("label", r"not the images and labels that card\.json was written for"),
        ("shape", r"holds images of other sizes than 16 x 16, as card\.json says"),
        ("count", r"1436 images, but card\.json says 1437"),
    ],
)
def test_a_beton_that_was_replaced_under_its_card_is_refused(digits_copy, change, said):
    path = digits_copy / "train.beton"
    beton = read_beton(path)
    images_NHWC, labels_N = beton.images_NHWC, beton.labels_N
    if change == "pixel":
        images_NHWC[700, 3, 4, 1] ^= 1
    elif change == "label":
        labels_N[700] = (labels_N[700] + 1) % 10
    elif change == "shape":
        images_NHWC = images_NHWC[:, :-1]
    else:
        images_NHWC, labels_N = images_NHWC[:-1], labels_N[:-1]
    write_beton(path, images_NHWC, labels_N)
    with pytest.raises(UserError, match=rf"train\.beton: {said}") as caught:
        load_split(digits_copy, "train", CPU)
    assert "\n" not in str(caught.value)
