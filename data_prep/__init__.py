"""Datasets to .beton files: `python -m data_prep DATASET --out DIR`, or `data_prep.prepare`.

A dataset directory holds train.beton, test.beton, train.digests and test.digests (`fastwi.beton.image_digests`) and
card.json (`fastwi.data.card`).
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from data_prep.dataset import Report, silent

__all__ = ["DATASETS", "prepare"]

DATASETS = ("cifar10", "cifar100", "svhn", "cinic10", "folder", "digits")


def _warn(line: str) -> None:
    """What `prepare` does with a warning unless its caller says otherwise."""
    warnings.warn(line, stacklevel=5)


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

    Images are taken as a viewer shows them, turned as their EXIF data say, or refused. The card's source says what
    was done to pixels. Both splits are complete on disk before earlier files in `out` are replaced; card.json comes
    last.

    Args:
        dataset: one of DATASETS. size, with_valid, write_mode, keep_size and background are for folder and cinic10.
        out: made if it does not exist.
        source: a local copy. folder and cinic10: an image folder or a zip of one; the torchvision datasets:
            what torchvision would download, downloaded if None.
        name: the card's name for the dataset; None: the dataset's own, or that of its folder.
        size: resize images to this many pixels a side.
        with_valid: add the images of valid/ to the training images.
        write_mode: "raw" pixels; "smart": JPEG files as they are and others raw, so that nothing is lost; "jpeg":
            others encoded as JPEGs. Sets with JPEGs are streamed from the disk (`data.streaming`).
        keep_size: store images of several sizes as they are.
        background: a colour, such as white or #808080, that images with transparent pixels are laid on; None: they
            are refused.
        writer: "ffcv", "raw" (the project's own) or "auto": FFCV where it is installed. The files they write
            are the same.
        report: called with (stage, done, total) as images are written.
        warn: called with one line for each thing that a user should know of, such as colour profiles, which are not
            applied; by default a UserWarning.

    Raises:
        UserError: the source is missing or damaged, the arguments do not go together, the disk is full, ...
    """
    # Imported here so that `--help` needs neither NumPy nor Pillow.
    from data_prep.digits import load_digits
    from data_prep.folder import WRITE_MODES, Options, open_folder
    from data_prep.sources import load_torchvision
    from data_prep.write import output_directory, write_dataset
    from fastwi.errors import UserError

    if dataset not in DATASETS:
        raise UserError(f"{dataset}: no such dataset; choose one of {', '.join(DATASETS)}")
    options = Options(size, with_valid, write_mode, keep_size, background)
    if dataset not in ("folder", "cinic10") and options != Options():
        only = "size, with-valid, write-mode, keep-size and background are for folder and cinic10"
        raise UserError(f"{dataset}: {only}; leave them out")
    if write_mode not in WRITE_MODES:
        raise UserError(f"write-mode {write_mode}: choose one of {', '.join(WRITE_MODES)}")
    if write_mode != "raw" or keep_size:
        if size is not None or writer == "ffcv":
            what = "size resizes what they keep" if size is not None else "writer ffcv is for raw images of one size"
            raise UserError(f"{dataset}: write-mode and keep-size are given, and {what}; leave one of them out")
        writer = "raw"
    with output_directory(out) as directory:  # before an hour of reading, not after it
        if dataset in ("folder", "cinic10"):
            named = name or ("cinic10" if dataset == "cinic10" else None)
            with open_folder(source, named, options, warn) as images:
                write_dataset(images, directory, writer, report)
        elif dataset != "digits":
            write_dataset(load_torchvision(dataset, source, directory, name or dataset), directory, writer, report)
        elif source is not None:
            raise UserError("digits: come with scikit-learn; leave the source out")
        else:
            write_dataset(load_digits(name or dataset), directory, writer, report)
        return directory
