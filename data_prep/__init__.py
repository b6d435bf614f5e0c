"""Datasets to .beton files: `python -m data_prep DATASET --out DIR`, or `data_prep.prepare`.

A dataset directory holds train.beton, test.beton, train.digests and test.digests (`fastwi.beton.digests`) and
card.json (`fastwi.data.card`).
"""

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from data_prep.progress import Report, silent

__all__ = ["DATASETS", "prepare"]

DATASETS = ("cifar10", "cifar100", "svhn", "cinic10", "folder", "digits")
WRITE_MODES = ("raw", "smart", "jpeg")
WRITERS = ("auto", "ffcv", "raw")
_LARGEST_SIZE = 4096


def _warn(line: str) -> None:
    """What `prepare` does with a warning unless its caller says otherwise."""
    warnings.warn(line, stacklevel=3)


def prepare(
    dataset: str,
    out: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    size: int | None = None,
    with_valid: bool = False,
    write_mode: str = "raw",
    keep_size: bool = False,
    background: str | None = None,
    writer: str = "auto",
    report: Report = silent,
    warn: Callable[[str], None] = _warn,
) -> Path:
    """Write a dataset into the directory `out` and return that directory.

    Images are taken as a viewer shows them, turned as their EXIF data say, or refused. Both splits are complete on
    disk before earlier files in `out` are replaced; card.json comes last.

    Args:
        dataset: one of DATASETS. size, with_valid, write_mode, keep_size and background are for folder and cinic10.
        source: a local copy; None downloads a set of torchvision.
        name, size, with_valid, write_mode, keep_size, background, writer: as `python -m data_prep --help` says.
        report: called with (stage, done, total) as images are written.
        warn: called with one line for each thing that a user should know of; by default a UserWarning.

    Raises:
        UserError: the source is missing or damaged, the arguments do not go together, the disk is full, ...
    """
    # Imported here so that `--help` needs neither NumPy nor Pillow.
    from data_prep.digits import load_digits
    from data_prep.folder import Options, open_folder
    from data_prep.sources import load_torchvision
    from data_prep.write import output_directory, write_dataset
    from fastwi.errors import UserError

    options = Options(size, with_valid, write_mode, keep_size, background)
    is_folder, kept = dataset in ("folder", "cinic10"), write_mode != "raw" or keep_size
    only_folders = "size, with-valid, write-mode, keep-size and background are for folder and cinic10; leave them out"
    wrong = {
        f"no such dataset; choose one of {', '.join(DATASETS)}": dataset not in DATASETS,
        only_folders: not is_folder and options != Options(),
        "pass --source, an image folder or a zip of one": is_folder and source is None,
        "come with scikit-learn; leave the source out": dataset == "digits" and source is not None,
        f"size {size}: give 1 to {_LARGEST_SIZE} pixels": size is not None and not 1 <= size <= _LARGEST_SIZE,
        f"write-mode {write_mode}: choose one of {', '.join(WRITE_MODES)}": write_mode not in WRITE_MODES,
        f"writer {writer}: choose one of {', '.join(WRITERS)}": writer not in WRITERS,
        "size resizes what write-mode and keep-size keep; leave one of them out": kept and size is not None,
        "writer ffcv is for raw images of one size; leave it out": kept and writer == "ffcv",
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{dataset}: {what}")
    # Before an hour of reading, not after it.
    with output_directory(out) as directory, contextlib.ExitStack() as stack:
        if source is not None and is_folder:
            named = name or ("cinic10" if dataset == "cinic10" else None)
            images = stack.enter_context(open_folder(Path(source), named, options))
        elif dataset == "digits":
            images = load_digits(name or dataset)
        else:
            images = load_torchvision(dataset, source, directory, name or dataset)
        write_dataset(images, directory, "raw" if kept else writer, report)
        for line in images.warnings():
            warn(line)
    return directory
