"""A dataset in memory to its betons, their image digests and card.json: all of them, or what was there before."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.dataset import ImageSet, Report, Split
from fastwi.beton import content_sha256, read_beton
from fastwi.beton.format import RAW
from fastwi.beton.image_digests import ImageDigests, image_digest
from fastwi.beton.writer import write_stream
from fastwi.data.card import CARD_FILE, SPLITS, Card, beton_path, digests_path
from fastwi.errors import BetonError, UserError
from fastwi.files import atomic_path, write_json
from fastwi.version import __version__

WRITERS = ("auto", "ffcv", "raw")
_STATISTICS_BLOCK = 512  # images counted at a time

# Writes a split at a path; calls back with the number of images done.
SplitWriter = Callable[[Path, Split, Callable[[int], None]], None]


@contextlib.contextmanager
def output_directory(out: str | os.PathLike[str]) -> Iterator[Path]:
    """The directory `out`, made unless it exists. Raises UserError if it cannot be written into.

    Where the block fails, a directory that was made for it and is empty is removed.
    """
    directory = Path(out)
    new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made ({error.strerror or error}); choose another --out") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UserError(f"{directory}: not writable; choose another --out")
    try:
        yield directory
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # something is in it
                directory.rmdir()
        raise


def write_dataset(dataset: ImageSet, directory: Path, writer: str, report: Report) -> Card:
    """Write both splits and the card into `directory`, and return the card.

    Each file is read back and compared before anything in `directory` is replaced. From then until the new
    card stands there is no card, so that no reader takes a mixture for a dataset.

    Raises:
        UserError: the writer is not installed, the disk is full, the splits have different image sizes, ...
    """
    splits = {"train": dataset.train, "test": dataset.test}
    shapes = [split.images_NHWC.shape[1:] for split in splits.values()]
    if shapes[0] != shapes[1]:
        raise UserError(f"{dataset.name}: training images are {shapes[0]}, test images {shapes[1]}")
    written_by, write_split = _choose_writer(writer)
    digests = {name: _digests(split) for name, split in splits.items()}
    card = _card(dataset, splits, digests, written_by)
    with contextlib.ExitStack() as stack:
        for name in SPLITS:
            final = beton_path(directory, name)
            temporary = stack.enter_context(atomic_path(final))
            write_split(temporary, splits[name], _progress(report, f"write {final.name}", card.counts[name]))
            _check_written(temporary, final, card.sha256[name])
            write_digests(stack, directory, name, digests[name])
        (directory / CARD_FILE).unlink(missing_ok=True)
    write_json(directory / CARD_FILE, card.to_json())
    return card


def write_digests(stack: contextlib.ExitStack, directory: Path, split: str, digests: ImageDigests) -> None:
    """Write the digests of a split's images; they replace earlier ones when `stack` is left without an error."""
    final = digests_path(directory, split)
    temporary = stack.enter_context(atomic_path(final))
    temporary.write_bytes(digests.to_bytes())
    if hashlib.sha256(temporary.read_bytes()).hexdigest() != digests.sha256:
        raise UserError(f"{final}: does not read back as it was written; check the disk and its free space")


def channel_statistics(images_NHWC: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel of uint8 images, over all pixels, in 0..1.

    Computed from exact counts of the 256 intensities, so that neither order nor blocks matter.
    """
    counts_CV = np.zeros((images_NHWC.shape[3], 256), dtype=np.int64)
    for first in range(0, len(images_NHWC), _STATISTICS_BLOCK):
        count_intensities(counts_CV, images_NHWC[first : first + _STATISTICS_BLOCK])
    return statistics_of_counts(counts_CV)


def count_intensities(counts_CV: np.ndarray, pixels: np.ndarray) -> None:
    """Add to `counts_CV`, int64 [C, 256], how often each intensity occurs in each channel of uint8 [..., C]."""
    for channel, counts_V in enumerate(counts_CV):
        counts_V += np.bincount(pixels[..., channel].reshape(-1), minlength=256)


def statistics_of_counts(counts_CV: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`channel_statistics` of pixels whose intensities occur so often."""
    value_V = np.arange(256) / 255
    share_CV = counts_CV / counts_CV.sum(axis=1, keepdims=True)
    mean_C = share_CV @ value_V
    variance_C = (share_CV * (value_V - mean_C[:, None]) ** 2).sum(axis=1)
    return tuple(mean_C.tolist()), tuple(np.sqrt(variance_C).tolist())


def _digests(split: Split) -> ImageDigests:
    height, width = split.images_NHWC.shape[1:3]
    every = zip(split.images_NHWC, split.labels_N.tolist(), strict=True)
    digests = (image_digest(RAW, height, width, label, image_HWC.tobytes()) for image_HWC, label in every)
    return ImageDigests.of(digests, split.labels_N)


def _card(dataset: ImageSet, splits: dict[str, Split], digests: dict[str, ImageDigests], written_by: str) -> Card:
    mean, std = channel_statistics(dataset.train.images_NHWC)
    height, width, channels = dataset.train.images_NHWC.shape[1:]
    class_counts = {
        name: tuple(np.bincount(split.labels_N, minlength=len(dataset.classes)).tolist())
        for name, split in splits.items()
    }
    return Card(
        name=dataset.name,
        classes=dataset.classes,
        image_shape=(height, width, channels),
        counts={name: len(split.labels_N) for name, split in splits.items()},
        class_counts=class_counts,
        mean=mean,
        std=std,
        source=dataset.source,
        sha256={name: content_sha256(split.images_NHWC, split.labels_N) for name, split in splits.items()},
        digests_sha256={name: each.sha256 for name, each in digests.items()},
        writer=written_by,
    )


def _choose_writer(writer: str) -> tuple[str, SplitWriter]:
    """What the card says about the writer, and the writer itself."""
    if writer not in WRITERS:
        raise UserError(f"writer {writer}: choose one of {', '.join(WRITERS)}")
    if writer == "ffcv" or (writer == "auto" and importlib.util.find_spec("ffcv") is not None):
        try:
            from data_prep.ffcv_writer import write_with_ffcv

            return f"ffcv {importlib.metadata.version('ffcv')}", write_with_ffcv
        except ImportError as error:
            if writer == "ffcv":
                mend = "`python -m fastwi.doctor` says what is missing, or pass --writer raw"
                raise UserError(f"ffcv: cannot be imported ({error}); {mend}") from error
    return f"fastwi {__version__}", _write_raw


def _write_raw(path: Path, split: Split, progress: Callable[[int], None]) -> None:
    with open(path, "wb") as stream:
        write_stream(stream, split.images_NHWC, split.labels_N, progress=progress)


def _progress(report: Report, stage: str, total: int) -> Callable[[int], None]:
    return lambda done: report(stage, done, total)


def _check_written(temporary: Path, final: Path, sha256: str) -> None:
    """Read the new file back: a full disk or a faulty one may lose bytes without an error."""
    try:
        beton = read_beton(temporary)
        intact = content_sha256(beton.images_NHWC, beton.labels_N) == sha256
    except BetonError:
        intact = False
    if not intact:
        raise UserError(f"{final}: does not read back as it was written; check the disk and its free space")
    # The long flush belongs here, where earlier files still stand whole, not between their replacements.
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
