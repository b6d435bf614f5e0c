"""The bundled digits: the documented pixels and the documented split, the same on every machine."""

import numpy as np
import pytest
from prepared import digits
from sklearn.datasets import load_digits as bundled

from data_prep.digits import stratified_choice
from fastwi.beton import content_sha256


def test_content_is_the_recorded_one() -> None:
    recorded = [
        "4d89fb0a94eab468fd6bb354fe8b7ab42c2297448ec58b8eaa5485eb752030cc",
        "fad0f821313b33496285f712ac6677988a86405d5f4b324b33871ae3542b1010",
    ]
    assert [content_sha256(each.images_NHWC, each.labels_N) for each in (digits().train, digits().test)] == recorded


def test_every_digit_is_in_one_split_scaled_and_repeated() -> None:
    expected = []
    for image, label in zip(bundled().images, bundled().target, strict=True):
        grey = np.kron(np.rint(image * 255 / 16), np.ones((2, 2))).astype(np.uint8)
        expected.append((np.stack([grey] * 3, axis=2).tobytes(), int(label)))
    found = []
    for split in (digits().train, digits().test):
        found += [(image.tobytes(), int(t)) for image, t in zip(split.images_NHWC, split.labels_N, strict=True)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(("sizes", "count"), [([3, 5, 9], 7), ([10, 10], 5), ([1, 50], 3), ([4], 4), ([4, 4], 0)])
def test_each_class_has_its_share(sizes: list[int], count: int) -> None:
    labels_N = np.repeat(np.arange(len(sizes)), sizes)
    chosen_N = stratified_choice(labels_N, count, seed=1)
    assert chosen_N.sum() == count
    shares = np.array(sizes) * count / sum(sizes)
    assert np.abs(np.bincount(labels_N[chosen_N], minlength=len(sizes)) - shares).max() < 1
