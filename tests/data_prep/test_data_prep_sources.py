"""The torchvision datasets, read from small copies in the official formats: no network is needed.

The copies hold real digits; their checksums replace the official ones, so that torchvision's own checks run.
"""

import hashlib
import os
import pickle
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from prepared import check_prepared, some_digits
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from data_prep import prepare
from data_prep.dataset import Split
from fastwi.errors import UserError


def large(split: Split) -> Split:
    """Digits at the 32 x 32 that these datasets have."""
    return Split(split.images_NHWC.repeat(2, axis=1).repeat(2, axis=2), split.labels_N)


TRAIN, TEST = large(some_digits(2)), large(some_digits(1, skip=10))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_batch(path: Path, split: Split, places: slice, key: str) -> list[str]:
    data = split.images_NHWC[places].transpose(0, 3, 1, 2).reshape(-1, 3072)
    path.write_bytes(pickle.dumps({"data": data, key: split.labels_N[places].tolist()}))
    return [path.name, md5(path)]


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as torchvision leaves it after a download of CIFAR-10, with 20 + 10 images."""
    root = tmp_path / "copy"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{n + 1}" for n in range(5)]
    batches = [write_batch(folder / name, TRAIN, slice(4 * n, 4 * n + 4), "labels") for n, name in enumerate(names)]
    monkeypatch.setattr(CIFAR10, "train_list", batches)
    monkeypatch.setattr(CIFAR10, "test_list", [write_batch(folder / "test_batch", TEST, slice(None), "labels")])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind {n}" for n in range(10)]}))
    meta = CIFAR10.meta | {"md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return root


def test_cifar10_from_a_directory(tmp_path: Path, cifar10: Path) -> None:
    prepare("cifar10", tmp_path / "out", cifar10, writer="raw")
    card = check_prepared(tmp_path / "out", TRAIN, TEST)
    assert card.name == "cifar10"
    assert card.classes == tuple(f"kind {n}" for n in range(10))
    assert card.source.startswith("torchvision ")
    assert card.source.endswith(", local copy copy")


@pytest.mark.parametrize("given", ["archive", "directory"])
def test_cifar10_from_the_official_archive(
    tmp_path: Path, cifar10: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar10 / "cifar-10-batches-py", "cifar-10-batches-py")
    source = archive if given == "archive" else folder
    with pytest.raises(UserError, match=r"is not the official cifar-10-python\.tar\.gz, or damaged"):
        prepare("cifar10", tmp_path / "out", source, writer="raw")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    prepare("cifar10", tmp_path / "out", source, writer="raw")
    check_prepared(tmp_path / "out", TRAIN, TEST)
    assert list(folder.iterdir()) == [archive]


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, split in (("train", TRAIN), ("test", TEST)):
        batch = write_batch(folder / name, split, slice(None), "fine_labels")
        monkeypatch.setattr(CIFAR100, f"{name}_list", [batch])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"kind {n}" for n in range(100)]}))
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(folder / "meta")})
    prepare("cifar100", tmp_path / "out", tmp_path, name="fine", writer="raw")
    card = check_prepared(tmp_path / "out", TRAIN, TEST)
    assert (card.name, len(card.classes)) == ("fine", 100)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, Any] = {}
    for name, split in (("train", TRAIN), ("test", TEST)):
        labels = np.where(split.labels_N == 0, 10, split.labels_N)[:, None]  # SVHN's label of digit 0 is 10
        path = tmp_path / f"{name}_32x32.mat"
        scipy.io.savemat(path, {"X": split.images_NHWC.transpose(1, 2, 3, 0), "y": labels.astype(np.uint8)})
        files[name] = ["none", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", files)
    prepare("svhn", tmp_path / "out", tmp_path, writer="raw")
    assert check_prepared(tmp_path / "out", TRAIN, TEST).classes == tuple("0123456789")
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"holds no intact train_32x32\.mat and test_32x32\.mat; give another"):
        prepare("svhn", tmp_path / "out", tmp_path, writer="raw")


class Hostile:
    """Unpickled, it makes a directory."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._place),)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_what_is_not_the_official_file_is_never_unpickled(tmp_path: Path, cifar10: Path, name: str) -> None:
    content = pickle.dumps(Hostile(tmp_path / "executed"))
    (cifar10 / "cifar-10-batches-py" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"copy: holds no intact cifar-10-batches-py or cifar-10-python\.tar\.gz"):
        prepare("cifar10", tmp_path / "out", cifar10)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "executed").exists()
    pickle.loads(content)
    assert (tmp_path / "executed").exists()


def test_no_copy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "holds no intact"), ("none", "does not exist; give a directory with")):
        with pytest.raises(UserError, match=f"{name}: {said} cifar-100-python"):
            prepare("cifar100", tmp_path / "out", tmp_path / name)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn"])
def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError, match=rf"{dataset}: cannot be downloaded \(no route to host\); pass --source"):
        prepare(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
