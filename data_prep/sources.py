"""CIFAR-10, CIFAR-100 and SVHN: downloaded, or from a local copy, by the names and checksums that torchvision knows.

torchvision itself would unpickle CIFAR's batches with all that a pickle can do; here `data_prep.cifar` reads them.
"""

import contextlib
import hashlib
import io
import os
import socket
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.cifar import batch, names
from data_prep.dataset import ImageSet, Split
from data_prep.trees import MAX_FILE_BYTES, read_file
from fastwi.data.card import SPLITS
from fastwi.errors import UserError

_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}
_NETWORK_PATIENCE = 30  # seconds without an answer


def load_torchvision(dataset: str, source: str | os.PathLike[str] | None, scratch: Path, name: str) -> ImageSet:
    """Read both splits of a torchvision dataset; every file must be the official one, by its checksum.

    Args:
        dataset: "cifar10", "cifar100" or "svhn".
        source: a directory with the files as torchvision lays them out, or a CIFAR set's official .tar.gz,
            itself or in that directory; None: download.
        scratch: a directory for downloaded files, which are removed at the end.
        name: the dataset's name in its card.

    Raises:
        UserError: no network, or no intact copy at `source`.
    """
    try:
        import torchvision
    except ImportError as error:
        raise UserError(f"{dataset}: torchvision cannot be imported ({error}); pip install torchvision") from error
    kind = getattr(torchvision.datasets, _CLASSES[dataset])
    read = _svhn if dataset == "svhn" else _cifar
    if source is not None:
        said = f"torchvision {torchvision.__version__}, local copy {Path(source).name}"
        return read(kind, Path(source), name, said)
    with tempfile.TemporaryDirectory(prefix=".download.", dir=scratch) as temporary:
        _download(dataset, kind, Path(temporary))
        return read(kind, Path(temporary), name, f"torchvision {torchvision.__version__} download")


def _cifar(kind: Any, source: Path, name: str, said: str) -> ImageSet:
    """Every file is read into memory once, held to its checksum, and only then looked into."""
    read = _cifar_files(kind, source)
    files = {file: _checked(kind, source, file, read(file), md5) for file, md5 in _cifar_checksums(kind).items()}
    splits: dict[str, Split] = {}
    for split, listed in (("train", kind.train_list), ("test", kind.test_list)):
        batches = [_understood(source, file, batch, files[file]) for file, _ in listed]
        images_NCHW = np.concatenate([images for images, _ in batches])
        images_NHWC = np.ascontiguousarray(images_NCHW.transpose(0, 2, 3, 1))
        splits[split] = Split(images_NHWC, np.concatenate([labels for _, labels in batches]))
    meta = kind.meta["filename"]
    classes = _understood(source, meta, lambda data: names(data, kind.meta["key"]), files[meta])
    if max(int(split.labels_N.max()) for split in splits.values()) >= len(classes):
        raise UserError(f"{source}: has labels beyond its {len(classes)} classes; give another copy")
    return ImageSet(name, classes, splits["train"], splits["test"], said)


def _cifar_checksums(kind: Any) -> dict[str, str]:
    return {**dict(kind.train_list), **dict(kind.test_list), kind.meta["filename"]: kind.meta["md5"]}


def _cifar_files(kind: Any, source: Path) -> Callable[[str], bytes | None]:
    """How to get the content of a file of the set, from a folder or out of the official archive."""
    if not source.exists():
        raise UserError(f"{source}: does not exist; give a directory with {_files(kind)}")
    archive = source / kind.filename if source.is_dir() else source
    if (source / kind.base_folder).is_dir() or not archive.is_file():
        return lambda file: read_file(source / kind.base_folder / file)
    packed = read_file(archive)
    if packed is None or _md5(packed) != kind.tgz_md5:
        raise UserError(f"{archive}: is not the official {kind.filename}, or damaged; give another copy")
    members = _unpacked(archive, packed, [f"{kind.base_folder}/{file}" for file in _cifar_checksums(kind)])
    return lambda file: members[f"{kind.base_folder}/{file}"]


def _unpacked(archive: Path, packed: bytes, wanted: list[str]) -> dict[str, bytes]:
    """Plain files of an archive, in memory: nothing is extracted."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
            for member in tar:
                if member.isreg() and member.name in wanted and member.size <= MAX_FILE_BYTES:
                    stream = tar.extractfile(member)
                    found[member.name] = stream.read() if stream is not None else b""
    except Exception as error:  # a damaged archive raises many kinds: tarfile's, zlib's, EOFError, ValueError, ...
        raise UserError(f"{archive}: cannot be unpacked ({error}); give another copy") from error
    missing = next((name for name in wanted if name not in found), None)
    if missing is not None:
        raise UserError(f"{archive}: holds no file {missing}; give another copy")
    return found


def _svhn(kind: Any, source: Path, name: str, said: str) -> ImageSet:
    import scipy.io

    if not source.exists():
        raise UserError(f"{source}: does not exist; give a directory with {_files(kind)}")
    splits: dict[str, Split] = {}
    for split in SPLITS:
        _, file, md5 = kind.split_list[split]
        data = _checked(kind, source, file, read_file(source / file), md5)
        found = _understood(source, file, lambda data: scipy.io.loadmat(io.BytesIO(data)), data)
        labels_N = found["y"].astype(np.int64).reshape(-1)
        # Stored as HWCN, and the label of the digit 0 as 10.
        images_NHWC = np.ascontiguousarray(found["X"].transpose(3, 0, 1, 2))
        splits[split] = Split(images_NHWC, np.where(labels_N == 10, 0, labels_N))
    return ImageSet(name, tuple(str(digit) for digit in range(10)), splits["train"], splits["test"], said)


def _understood(source: Path, file: str, read: Callable[[bytes], Any], data: bytes) -> Any:
    """What `read` makes of a file."""
    try:
        return read(data)
    except Exception as error:  # scipy raises many kinds for what is no .mat file
        raise UserError(f"{source}: {file} {error}; give another copy") from error


def _checked(kind: Any, source: Path, file: str, data: bytes | None, md5: str) -> bytes:
    if data is None or _md5(data) != md5:
        raise UserError(f"{source}: holds no intact {_files(kind)}; give another copy")
    return data


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _download(dataset: str, kind: Any, root: Path) -> None:
    """Fetch what `_cifar` or `_svhn` reads."""
    from torchvision.datasets.utils import download_url

    svhn = hasattr(kind, "split_list")
    files = [kind.split_list[split] for split in SPLITS] if svhn else [(kind.url, kind.filename, kind.tgz_md5)]
    try:
        with _patience(), contextlib.redirect_stdout(sys.stderr):
            for url, file, md5 in files:
                download_url(url, str(root), file, md5)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: a wrong checksum
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{dataset}: cannot be downloaded ({reason}); pass --source with a local copy ({_files(kind)})"
        ) from error


def _files(kind: Any) -> str:
    """What a local copy must consist of."""
    if hasattr(kind, "base_folder"):
        return f"{kind.base_folder} or {kind.filename}"
    return " and ".join(kind.split_list[split][1] for split in SPLITS)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Give up on a silent network; urllib would wait for ever."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
