"""A dataset to its betons, their image digests and card.json: all of them, or what was there before."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.dataset import Images, ImageSet, is_text
from data_prep.progress import Report
from fastwi.beton import StoredBeton, StoredImage, write_stored
from fastwi.beton.digests import DIGEST, image_digest, read_digests
from fastwi.beton.format import JPEG, PAGE_SIZE, page_size_for
from fastwi.beton.writer import ImageTooLarge
from fastwi.data.card import CARD_FILE, SPLITS, Card, beton_path, digests_path
from fastwi.errors import BetonError, UserError
from fastwi.files import atomic_path, write_json
from fastwi.sealed import sha256_of
from fastwi.version import __version__

# Writes images and labels as a beton at a path, with pages of a size.
BetonWriter = Callable[[Path, Iterator[StoredImage], np.ndarray, int], None]

_REPORT_EVERY = 500  # images


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

    Each file is read back and compared before anything in `directory` is replaced. From then until the new card
    stands there is no card, so that no reader takes a mixture for a dataset.
    Raises UserError where the writer is not installed, the disk is full, images have different sizes, ...
    """
    for text, fix in ((dataset.name, "give another with --name"), (dataset.source, "rename it")):
        if not is_text(text):
            raise UserError(f"{text}: cannot be named in card.json, as it is not UTF-8; {fix}")
    written_by, write = _choose_writer(writer)
    splits: dict[str, _Split] = {}
    with contextlib.ExitStack() as stack:
        for name, images in zip(SPLITS, (dataset.train, dataset.test), strict=True):
            final = beton_path(directory, name)
            beton = stack.enter_context(atomic_path(final))
            split = _Split(images, functools.partial(report, f"write {final.name}"))
            split.write(write, beton)
            digests = stack.enter_context(atomic_path(digests_path(directory, name)))
            digests.write_bytes(split.digests_N.tobytes())
            split.check_written(beton, digests, final)
            splits[name] = split
        try:
            card = _card(dataset, splits, written_by)
        except ValueError as error:  # a name that is not Unicode, for one
            problem = str(error).splitlines()[:2][-1].strip()
            raise UserError(f"{dataset.name}: cannot be described in card.json: {problem}; rename it") from error
        (directory / CARD_FILE).unlink(missing_ok=True)
    write_json(directory / CARD_FILE, card.to_json())
    return card


class _Split:
    """A split on its way to the file, and what the card says about it."""

    def __init__(self, images: Images, report: Callable[[int, int], None]) -> None:
        self._images = images
        self._report = report
        self.labels_N = images.labels_N.astype(np.int64)

    def write(self, write: BetonWriter, path: Path) -> None:
        """The largest image, which decides the size of pages, is known only once it is met: then it begins again."""
        page_size = PAGE_SIZE
        while True:
            try:
                return write(path, self._counted(), self.labels_N, page_size)
            except ImageTooLarge as error:
                page_size = page_size_for(error.needed)

    def _counted(self) -> Iterator[StoredImage]:
        total = len(self.labels_N)
        self.counts_CV = np.zeros((3, 256), np.int64)  # how often each intensity occurs in each channel
        self.digests_N = np.zeros(total, DIGEST)
        self.digests_N["label"] = self.labels_N
        for n, (image, pixels_HWC) in enumerate(self._images.stored()):
            for channel, counts_V in enumerate(self.counts_CV):
                counts_V += np.bincount(pixels_HWC[..., channel].reshape(-1), minlength=256)
            digest = image_digest(image.mode, image.height, image.width, int(self.labels_N[n]), image.data)
            self.digests_N["digest"][n] = np.void(digest)
            if (n + 1) % _REPORT_EVERY == 0 or n + 1 == total:
                self._report(n + 1, total)
            yield image

    def check_written(self, path: Path, digests: Path, final: Path) -> None:
        """Read new files back, as a full disk or a faulty one may lose bytes without an error."""
        self.digests_sha256 = sha256_of(self.digests_N.tobytes())
        try:
            with contextlib.closing(StoredBeton(path)) as self.beton:
                self.beton.hold_to(read_digests(digests, self.digests_sha256))
                self.sha256 = self.beton.sha256()
        except BetonError as error:
            fix = "check the disk and its free space"
            raise UserError(f"{final}: does not read back as it was written; {fix}") from error
        # The long flush belongs here, where earlier files still stand whole, not between their replacements.
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def channel_statistics(counts_CV: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, in 0..1.

    `counts_CV` int64 [C, 256]: how often each intensity occurs. They are exact, so that no order of images matters.
    """
    value_V = np.arange(256) / 255
    share_CV = counts_CV / counts_CV.sum(axis=1, keepdims=True)
    mean_C = share_CV @ value_V
    variance_C = (share_CV * (value_V - mean_C[:, None]) ** 2).sum(axis=1)
    return tuple(mean_C.tolist()), tuple(np.sqrt(variance_C).tolist())


def _card(dataset: ImageSet, splits: dict[str, _Split], written_by: str) -> Card:
    train, test = splits.values()
    mean, std = channel_statistics(train.counts_CV)
    modes = {*train.beton.modes_N.tolist(), *test.beton.modes_N.tolist()}
    class_counts = {}
    for name, split in splits.items():
        class_counts[name] = tuple(np.bincount(split.labels_N, minlength=len(dataset.classes)).tolist())
    return Card(
        name=dataset.name,
        classes=dataset.classes,
        image_shape=(*train.beton.size(0), 3),
        counts={name: len(split.labels_N) for name, split in splits.items()},
        class_counts=class_counts,
        mean=mean,
        std=std,
        source=", ".join([dataset.source, *dataset.notes()]),
        sha256={name: split.sha256 for name, split in splits.items()},
        digests_sha256={name: split.digests_sha256 for name, split in splits.items()},
        writer=written_by,
        encoding="mixed" if len(modes) > 1 else "jpeg" if modes == {JPEG} else "raw",
        sizes="one" if train.beton.one_size == test.beton.one_size is not None else "various",
    )


def _choose_writer(writer: str) -> tuple[str, BetonWriter]:
    """What the card says about the writer, and the writer itself."""
    if writer == "ffcv" or (writer == "auto" and importlib.util.find_spec("ffcv") is not None):
        try:
            from data_prep.ffcv_writer import write_with_ffcv

            return f"ffcv {importlib.metadata.version('ffcv')}", write_with_ffcv
        except ImportError as error:
            if writer == "ffcv":
                fix = "`python -m fastwi.doctor` says what is missing, or pass --writer raw"
                raise UserError(f"ffcv: cannot be imported ({error}); {fix}") from error
    return f"fastwi {__version__}", write_stored
