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
    warnings.warn(line, stacklevel=4)


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
        dataset: one of DATASETS.
        out: made if it does not exist.
        source: a local copy. folder and cinic10: an image folder or a zip of one; the torchvision datasets:
            what torchvision would download, downloaded if None.
        name: the card's name for the dataset; None: the dataset's own, or that of its folder.
        size: resize images to this many pixels a side (folder and cinic10 only).
        with_valid: add the images of valid/ to the training images (folder and cinic10 only).
        write_mode: "raw" pixels; folder and cinic10 also: "smart": JPEG files as they are and others raw, so that
            nothing is lost; "jpeg": others encoded as JPEGs. Such sets are streamed from the disk (`data.streaming`).
        keep_size: store images of several sizes as they are (folder and cinic10 only).
        background: a colour, such as white or #808080, that images with transparent pixels are laid on (folder and
            cinic10 only); None: they are refused.
        writer: "ffcv", "raw" (the project's own) or "auto": FFCV where it is installed. The files they write
            are the same.
        report: called with (stage, done, total) as images are read and written.
        warn: called with one line for each thing that a user should know of, such as colour profiles, which are not
            applied; by default a UserWarning.

    Raises:
        UserError: the source is missing or damaged, the arguments do not go together, the disk is full, ...
    """
    # Imported here so that `--help` needs neither NumPy nor Pillow.
    from data_prep.digits import load_digits
    from data_prep.folder import load_folder
    from data_prep.sources import load_torchvision
    from data_prep.write import output_directory, write_dataset
    from fastwi.errors import UserError

    folder = dataset in ("folder", "cinic10")
    if dataset not in DATASETS:
        raise UserError(f"{dataset}: no such dataset; choose one of {', '.join(DATASETS)}")
    if not folder and (size is not None or with_valid or background is not None):
        raise UserError(f"{dataset}: size, with-valid and background are for folder and cinic10; leave them out")
    if write_mode not in ("raw", "jpeg", "smart"):
        raise UserError(f"write-mode {write_mode}: choose one of raw, jpeg, smart")
    as_stored = write_mode != "raw" or keep_size
    if not folder and as_stored:
        raise UserError(f"{dataset}: write-mode and keep-size are for folder and cinic10; leave them out")
    if as_stored and (size is not None or writer == "ffcv"):
        what = "size resizes what they keep" if size is not None else "writer ffcv is for raw images of one size"
        raise UserError(f"{dataset}: write-mode and keep-size are given, and {what}; leave one of them out")
    with output_directory(out) as directory:  # before an hour of reading, not after it
        own_name = "cinic10" if dataset == "cinic10" else None
        if as_stored:
            from data_prep.stored import write_folder

            write_folder(
                source,
                directory,
                name=name or own_name,
                with_valid=with_valid,
                write_mode=write_mode,
                keep_size=keep_size,
                background=background,
                report=report,
                warn=warn,
            )
            return directory
        if folder:
            loaded = load_folder(
                source,
                name=name or own_name,
                size=size,
                with_valid=with_valid,
                background=background,
                report=report,
                warn=warn,
            )
        elif dataset == "digits":
            if source is not None:
                raise UserError("digits: come with scikit-learn; leave the source out")
            loaded = load_digits(name or dataset)
        else:
            loaded = load_torchvision(dataset, source, directory, name or dataset)
        write_dataset(loaded, directory, writer, report)
        return directory
