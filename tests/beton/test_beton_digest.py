"""content_sha256 depends on the content and on nothing else."""

import hashlib

import numpy as np
import pytest
from beton_samples import random_split

import fastwi.beton.digest
from fastwi.beton import content_sha256
from fastwi.errors import BetonError


def test_the_digest_is_the_documented_one() -> None:
    images_NHWC, labels_N = random_split(3, 2, 5)
    head = b"images uint8 [3,2,5,3] labels int64\n"
    expected = hashlib.sha256(head + images_NHWC.tobytes() + labels_N.astype("<i8").tobytes())
    assert content_sha256(images_NHWC, labels_N) == expected.hexdigest()


def test_memory_layout_dtype_of_labels_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    images_NHWC, labels_N = random_split(7, 6, 5)
    expected = content_sha256(images_NHWC, labels_N)
    assert content_sha256(np.asfortranarray(images_NHWC), labels_N[::-1][::-1]) == expected
    assert content_sha256(images_NHWC, labels_N.astype(np.int16)) == expected
    monkeypatch.setattr(fastwi.beton.digest, "_BLOCK", 200)  # two images a block
    assert content_sha256(images_NHWC, labels_N) == expected


def test_any_change_of_the_content_shows() -> None:
    images_NHWC, labels_N = random_split(6, 4, 4)
    other_image, other_label = images_NHWC.copy(), labels_N.copy()
    other_image[3, 2, 1, 0] ^= 1
    other_label[5] += 1
    digests = {
        content_sha256(images_NHWC, labels_N),
        content_sha256(other_image, labels_N),
        content_sha256(images_NHWC, other_label),
        content_sha256(images_NHWC.reshape(6, 2, 8, 3), labels_N),
        content_sha256(images_NHWC[::-1], labels_N[::-1]),
    }
    assert len(digests) == 5


def test_arrays_that_do_not_belong_together() -> None:
    images_NHWC, labels_N = random_split(6, 4, 4)
    with pytest.raises(BetonError, match="images_NHWC: float64"):
        content_sha256(images_NHWC / 255, labels_N)
    with pytest.raises(BetonError, match=r"labels_N: int64\[5\]; give 6 integers"):
        content_sha256(images_NHWC, labels_N[:5])
