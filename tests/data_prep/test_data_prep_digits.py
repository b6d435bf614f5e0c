"""The bundled digits: the documented pixels and the documented split, the same on every machine."""

from pathlib import Path

import numpy as np
import pytest
from prepared import check_prepared, digits
from sklearn.datasets import load_digits as bundled

from data_prep import prepare
from data_prep.digits import stratified_choice
from fastwi.beton import content_sha256
from fastwi.errors import UserError


def test_content_is_the_recorded_one() -> None:
    dataset = digits()
    assert content_sha256(dataset.train.images_NHWC, dataset.train.labels_N) == (
        "4d89fb0a94eab468fd6bb354fe8b7ab42c2297448ec58b8eaa5485eb752030cc"
    )
    assert content_sha256(dataset.test.images_NHWC, dataset.test.labels_N) == (
        "fad0f821313b33496285f712ac6677988a86405d5f4b324b33871ae3542b1010"
    )


def test_every_digit_is_in_one_split_scaled_and_repeated() -> None:
    dataset = digits()
    assert (len(dataset.train.labels_N), len(dataset.test.labels_N)) == (1437, 360)
    original = bundled()
    expected = []
    for image, label in zip(original.images, original.target, strict=True):
        grey = np.kron(np.rint(image * 255 / 16), np.ones((2, 2))).astype(np.uint8)
        expected.append((np.stack([grey] * 3, axis=2).tobytes(), int(label)))
    found = []
    for split in (dataset.train, dataset.test):
        assert split.images_NHWC.shape[1:] == (16, 16, 3)
        found += [(i.tobytes(), int(t)) for i, t in zip(split.images_NHWC, split.labels_N, strict=True)]
    assert sorted(found) == sorted(expected)


def test_each_class_has_its_share_of_the_test_split() -> None:
    dataset = digits()
    whole = np.bincount(bundled().target)
    test = np.bincount(dataset.test.labels_N)
    assert test.sum() == 360
    assert np.abs(test - whole * 360 / 1797).max() < 1


@pytest.mark.parametrize(("sizes", "count"), [([3, 5, 9], 7), ([10, 10], 5), ([1, 50], 3), ([4], 4), ([4, 4], 0)])
def test_stratified_choice(sizes: list[int], count: int) -> None:
    labels_N = np.repeat(np.arange(len(sizes)), sizes)
    chosen_N = stratified_choice(labels_N, count, seed=1)
    assert chosen_N.sum() == count
    shares = np.array(sizes) * count / sum(sizes)
    assert np.abs(np.bincount(labels_N[chosen_N], minlength=len(sizes)) - shares).max() < 1
    np.testing.assert_array_equal(chosen_N, stratified_choice(labels_N, count, seed=1))


def test_another_seed_chooses_others() -> None:
    labels_N = np.repeat(np.arange(4), 50)
    assert (stratified_choice(labels_N, 40, seed=1) != stratified_choice(labels_N, 40, seed=2)).any()


def test_prepared(tmp_path: Path) -> None:
    assert prepare("digits", tmp_path / "out", writer="raw") == tmp_path / "out"
    card = check_prepared(tmp_path / "out", digits().train, digits().test)
    assert card.name == "digits"
    assert card.classes == tuple("0123456789")
    assert "8 x 8" in card.source
    assert "repeated 2 x 2" in card.source


def test_a_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="digits: come with scikit-learn; leave the source out"):
        prepare("digits", tmp_path, source=tmp_path)
