"""CIFAR's pickles: read as what they are, never executed."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cifar import PIXELS, BatchError, batch, names, unpickle


class Hostile:
    """Unpickled in the ordinary way it leaves a directory behind."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._place),)


def images(seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, PIXELS), dtype=np.uint8)


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("key", ["labels", "fine_labels"])
def test_a_batch_as_any_python_writes_it(seed: int, protocol: int, key: str) -> None:
    data = images(seed)
    images_NCHW, labels_N = batch(pickle.dumps({"data": data, key: [7, 0, 99], "batch_label": "x"}, protocol))
    np.testing.assert_array_equal(images_NCHW.reshape(3, PIXELS), data)
    assert labels_N.tolist() == [7, 0, 99]
    assert (images_NCHW.dtype, labels_N.dtype) == (np.uint8, np.int64)


def test_names_of_classes() -> None:
    assert names(pickle.dumps({"label_names": ["cat", "dog"]}), "label_names") == ("cat", "dog")
    for wrong in ({}, {"label_names": []}, {"label_names": [1]}, {"label_names": ["a", "a"]}, {"label_names": "ab"}):
        with pytest.raises(BatchError):
            names(pickle.dumps(wrong), "label_names")


@pytest.mark.parametrize("protocol", range(5))
def test_a_malicious_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    place = tmp_path / "executed"
    for content in (Hostile(place), {"data": Hostile(place), "labels": [1]}):
        data = pickle.dumps(content, protocol)
        with pytest.raises(BatchError, match=r"asks for (posix|nt)\.mkdir"):
            batch(data)
        assert not place.exists()
    pickle.loads(data)  # it is malicious indeed
    assert place.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nfromfile\n(S'x'\ntR.",
        b"cnumpy\nndarray.__class__\n.",
        b"\x80\x02\x82\x01.",  # the extension registry
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b".",  # a length that no memory has
        b"\x80\x02]r\xff\xff\xff\xff.",
        b"Pabc\n.",
        b"",
        b".",
    ],
)
def test_pickles_that_ask_for_more(data: bytes) -> None:
    with pytest.raises(BatchError):
        unpickle(data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": [1, 2]}, "bytes of pixels for 2 labels"),
        ({"labels": [1, 2, -1]}, "no list of labels"),
        ({"labels": [1, 2, 2**70]}, "no list of labels"),
        ({"labels": None}, "no list of labels"),
        ({"data": None}, "no array of pixels"),
        ({"data": np.zeros((3, PIXELS))}, "an array of another kind"),
        ({"data": np.zeros((3, PIXELS), object)}, "an array of another kind"),
        ({"data": np.asfortranarray(np.zeros((3, PIXELS), np.uint8))}, "an array of another kind"),
        ({"data": np.zeros((PIXELS, 3), np.uint8)}, "images of another size"),
    ],
)
def test_batches_that_are_none(changes: dict[str, Any], said: str) -> None:
    content = {"data": images(0), "labels": [1, 2, 3]} | changes
    with pytest.raises(BatchError, match=said):
        batch(pickle.dumps(content, 2))
