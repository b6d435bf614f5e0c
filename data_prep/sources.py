"""CIFAR-10, CIFAR-100 and SVHN as torchvision reads them: downloaded, or from a local copy.

CIFAR's batches are pickles. torchvision reads a file only if its checksum is the official one.
"""

import contextlib
import os
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dataset import ImageSet, Split
from fastwi.errors import UserError

_CLASSES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}
_NETWORK_TIMEOUT = 30  # seconds without an answer


def load_torchvision(dataset: str, source: str | os.PathLike[str] | None, scratch: Path, name: str) -> ImageSet:
    """Read both splits of a torchvision dataset; every file must be the official one, by its checksum.

    source: a directory with the files as torchvision lays them out, or a CIFAR set's official .tar.gz, itself or in
    that directory; None: download. scratch: where downloaded or unpacked files lie until the end.
    Raises UserError where there is no network, or no intact copy at `source`.
    """
    try:
        import torchvision
    except ImportError as error:
        raise UserError(f"{dataset}: torchvision cannot be imported ({error}); pip install torchvision") from error
    kind = getattr(torchvision.datasets, _CLASSES[dataset])
    files = f"{kind.base_folder} or {kind.filename}" if dataset != "svhn" else "train_32x32.mat and test_32x32.mat"
    said = f"torchvision {torchvision.__version__}"
    said += " download" if source is None else f", local copy {Path(os.path.abspath(source)).name}"
    with tempfile.TemporaryDirectory(prefix=".download.", dir=scratch) as temporary:
        root, fetch = Path(temporary), True
        if source is not None:
            root, fetch = _local(kind, Path(source), root, files)
        try:
            train, test = (_read(kind, dataset, root, split, fetch) for split in ("train", "test"))
        except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: a wrong checksum
            if source is not None:
                raise UserError(f"{source}: holds no intact {files}; give another copy") from error
            reason = getattr(error, "reason", None) or error
            fix = f"pass --source with a local copy ({files})"
            raise UserError(f"{dataset}: cannot be downloaded ({reason}); {fix}") from error
    digits = tuple(str(digit) for digit in range(10))
    classes = digits if dataset == "svhn" else tuple(train.classes)
    return ImageSet(name, classes, _split(train), _split(test), said)


def _local(kind: Any, source: Path, scratch: Path, files: str) -> tuple[Path, bool]:
    """torchvision's root for the copy at `source`, and whether it has to unpack an archive there first."""
    if not source.exists():
        raise UserError(f"{source}: does not exist; give a directory with {files}")
    if not hasattr(kind, "base_folder") or (source / kind.base_folder).is_dir():
        return source, False
    archive = source / kind.filename if source.is_dir() else source
    if not archive.exists():
        return source, False
    from torchvision.datasets.utils import check_integrity

    # Before the link: torchvision would download over a wrong archive.
    if not check_integrity(archive, kind.tgz_md5):
        raise UserError(f"{archive}: is not the official {kind.filename}, or damaged; give another copy")
    (scratch / kind.filename).symlink_to(archive.resolve())
    return scratch, True


def _read(kind: Any, dataset: str, root: Path, split: str, fetch: bool) -> Any:
    options = {"split": split} if dataset == "svhn" else {"train": split == "train"}
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)  # urllib would wait forever for a network that does not answer
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of how CIFAR's pickles spell a dtype
            return kind(str(root), download=fetch, **options)
    finally:
        socket.setdefaulttimeout(timeout)


def _split(read: Any) -> Split:
    if hasattr(read, "labels"):  # SVHN, [N, 3, H, W]
        return Split(np.ascontiguousarray(read.data.transpose(0, 2, 3, 1)), read.labels)
    return Split(np.ascontiguousarray(read.data), np.array(read.targets, np.int64))
