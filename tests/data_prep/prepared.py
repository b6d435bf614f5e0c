"""Image folders made of real images, and what a prepared dataset must fulfil."""

import io
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stored_samples import read_beton

from data_prep import prepare
from data_prep.dataset import ImageSet, Split
from data_prep.digits import load_digits
from fastwi.beton import content_sha256
from fastwi.beton.digests import image_digest, read_digests
from fastwi.beton.format import RAW
from fastwi.data.card import Card, beton_path, digests_path, read_card
from fastwi.errors import UserError


@cache
def digits() -> ImageSet:
    """scikit-learn's digits, 16 x 16."""
    return load_digits("digits")


def some_digits(per_class: int, skip: int = 0) -> Split:
    """`per_class` training digits of each class, sorted by class; tinted, so that mixed-up channels show."""
    train = digits().train
    chosen = [np.flatnonzero(train.labels_N == label)[skip : skip + per_class] for label in range(10)]
    places = np.concatenate(chosen)
    tinted_NHWC = train.images_NHWC[places]
    tinted_NHWC[..., 1] //= 2
    tinted_NHWC[..., 2] = 255 - tinted_NHWC[..., 2]
    return Split(tinted_NHWC, train.labels_N[places])


def png(image_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG")
    return stream.getvalue()


def image_files(part: str, split: Split) -> dict[str, bytes]:
    """path -> PNG of each image, at part/<class>/NNNN.png."""
    return {
        f"{part}/class{label}/{place:04}.png": png(image_HWC)
        for place, (image_HWC, label) in enumerate(zip(split.images_NHWC, split.labels_N, strict=True))
    }


def two_splits() -> tuple[Split, Split, dict[str, bytes]]:
    """30 training and 20 test digits, and the files of an image folder of them."""
    train, test = some_digits(3), some_digits(2, skip=10)
    return train, test, image_files("train", train) | image_files("test", test)


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def check_prepared(directory: Path, train: Split, test: Split) -> Card:
    """The directory holds just these splits, and a card that describes them."""
    written = ["card.json", "test.beton", "test.digests", "train.beton", "train.digests"]
    assert sorted(path.name for path in directory.iterdir()) == written
    card = read_card(directory)
    for name, split in (("train", train), ("test", test)):
        beton = read_beton(beton_path(directory, name))
        np.testing.assert_array_equal(beton.images_NHWC, split.images_NHWC)
        np.testing.assert_array_equal(beton.labels_N, split.labels_N)
        assert card.counts[name] == len(split.labels_N)
        counted = [int((split.labels_N == label).sum()) for label in range(len(card.classes))]
        assert list(card.class_counts[name]) == counted
        digests_N = read_digests(digests_path(directory, name), card.digests_sha256[name])
        np.testing.assert_array_equal(digests_N["label"], split.labels_N)
        height, width = split.images_NHWC.shape[1:3]
        for n, image_HWC in enumerate(split.images_NHWC):
            expected = image_digest(RAW, height, width, int(split.labels_N[n]), image_HWC.tobytes())
            assert digests_N["digest"][n].tobytes() == expected
        assert card.sha256[name] == content_sha256(split.images_NHWC, split.labels_N)
    assert card.image_shape == train.images_NHWC.shape[1:]
    pixels = train.images_NHWC.reshape(-1, 3).astype(np.float64) / 255
    np.testing.assert_allclose(card.mean, pixels.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(card.std, pixels.std(axis=0), rtol=1e-9)
    return card


def refusal(tmp_path: Path, source: Path, **options: object) -> str:
    """What prepare says about `source`; it must leave nothing behind."""
    out = tmp_path / "refused"
    with pytest.raises(UserError) as caught:
        prepare("folder", out, source, **options)
    assert not out.exists()
    return str(caught.value)


def snapshot(directory: Path) -> dict[str, Any]:
    """name -> content of every file."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def card_values(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "card.json").read_text())
