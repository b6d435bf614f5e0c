"""A dataset to its betons, their image digests and card.json: all of them, or what was there before."""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_prep.dataset import Images, ImageSet, Report
from fastwi.beton import StoredBeton, StoredImage, stored_sha256, write_stored_stream
from fastwi.beton.format import JPEG, MAX_PAGE_SIZE, PAGE_SIZE, page_size_for
from fastwi.beton.image_digests import ImageDigests, image_digest
from fastwi.beton.writer import ImageTooLarge
from fastwi.data.card import CARD_FILE, SPLITS, Card, beton_path, digests_path
from fastwi.errors import BetonError, UserError
from fastwi.files import atomic_path, write_json
from fastwi.version import __version__

# Writes images and labels as a beton at a path, with pages of a size; calls back with the number of images done.
BetonWriter = Callable[[Path, Iterator[StoredImage], np.ndarray, int, Callable[[int], None]], None]


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

    Each split is read once, or again from its start where an image does not fit a page. Each file is read back and
    compared before anything in `directory` is replaced. From then until the new card stands there is no card, so that
    no reader takes a mixture for a dataset.

    Raises:
        UserError: the writer is not installed, the disk is full, images have different sizes, ...
    """
    written_by, write = _choose_writer(writer)
    tallies: dict[str, _Tally] = {}
    sha256: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for split, images in zip(SPLITS, (dataset.train, dataset.test), strict=True):
            final = beton_path(directory, split)
            temporary = stack.enter_context(atomic_path(final))
            size = tallies["train"].first_size if tallies else None
            tally = _Tally(images, dataset.keep_size, size)
            _write_split(write, temporary, tally, functools.partial(report, f"write {final.name}"))
            sha256[split] = _check_written(temporary, final, tally.digests)
            tallies[split] = tally
            final = digests_path(directory, split)
            temporary = stack.enter_context(atomic_path(final))
            temporary.write_bytes(tally.digests.to_bytes())
            if hashlib.sha256(temporary.read_bytes()).hexdigest() != tally.digests.sha256:
                raise UserError(f"{final}: does not read back as it was written; check the disk and its free space")
        try:
            card = _card(dataset, tallies, sha256, written_by)
        except ValueError as error:  # a name that is not Unicode, for one
            problem = str(error).splitlines()[:2][-1].strip()
            raise UserError(f"{dataset.name}: cannot be described in card.json: {problem}; rename it") from error
        (directory / CARD_FILE).unlink(missing_ok=True)
    write_json(directory / CARD_FILE, card.to_json())
    return card


class _Tally:
    """The images of a split, and what the card says about them, counted as they pass on their way to the file."""

    def __init__(self, images: Images, keep_size: bool, size: tuple[int, int] | None) -> None:
        """`size`: height and width of the first training image, where it is known."""
        self._images, self._keep_size, self._size = images, keep_size, size
        self.labels_N = images.labels_N.astype(np.int64)

    def __iter__(self) -> Iterator[StoredImage]:
        self.counts_CV = np.zeros((3, 256), np.int64)  # how often each intensity occurs in each channel
        self.modes: set[int] = set()
        self.sizes: set[tuple[int, int]] = set()
        self._digests: list[bytes] = []
        for n, (image, pixels_HWC) in enumerate(self._images.stored()):
            size = (image.height, image.width)
            if n == 0:
                self.first_size = size
            self._size = self._size or size
            if not self._keep_size and size != self._size:
                raise UserError(
                    f"{self._images.where(n)} has {size[0]} x {size[1]} pixels, the first training image has "
                    f"{self._size[0]} x {self._size[1]}; pass --size N to resize all to N x N, or --keep-size"
                )
            for channel, counts_V in enumerate(self.counts_CV):
                counts_V += np.bincount(pixels_HWC[..., channel].reshape(-1), minlength=256)
            self.modes.add(image.mode)
            self.sizes.add(size)
            self._digests.append(image_digest(image.mode, *size, int(self.labels_N[n]), image.data))
            yield image

    @property
    def digests(self) -> ImageDigests:
        """Of the images that have passed."""
        return ImageDigests.of(self._digests, self.labels_N)


def _write_split(write: BetonWriter, path: Path, tally: _Tally, report: Callable[[int, int], None]) -> None:
    """Write a split at `path`. The largest image, which decides the size of pages, is known only once it is met."""
    page_size, total = PAGE_SIZE, len(tally.labels_N)
    while True:
        try:
            write(path, iter(tally), tally.labels_N, page_size, lambda done: report(done, total))
            break
        except ImageTooLarge as error:
            page_size = page_size_for(error.needed)
            if page_size > MAX_PAGE_SIZE:
                raise
            os.truncate(path, 0)


def channel_statistics(counts_CV: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel, in 0..1.

    `counts_CV` int64 [C, 256]: how often each intensity occurs. They are exact, so that no order of images matters.
    """
    value_V = np.arange(256) / 255
    share_CV = counts_CV / counts_CV.sum(axis=1, keepdims=True)
    mean_C = share_CV @ value_V
    variance_C = (share_CV * (value_V - mean_C[:, None]) ** 2).sum(axis=1)
    return tuple(mean_C.tolist()), tuple(np.sqrt(variance_C).tolist())


def _card(dataset: ImageSet, tallies: dict[str, _Tally], sha256: dict[str, str], written_by: str) -> Card:
    mean, std = channel_statistics(tallies["train"].counts_CV)
    modes = set().union(*(tally.modes for tally in tallies.values()))
    sizes = set().union(*(tally.sizes for tally in tallies.values()))
    counts = {
        split: np.bincount(tally.labels_N, minlength=len(dataset.classes)).tolist()
        for split, tally in tallies.items()
    }
    return Card(
        name=dataset.name,
        classes=dataset.classes,
        image_shape=(*tallies["train"].first_size, 3),
        counts={split: len(tally.labels_N) for split, tally in tallies.items()},
        class_counts={split: tuple(each) for split, each in counts.items()},
        mean=mean,
        std=std,
        source=", ".join([dataset.source, *dataset.notes()]),
        sha256=sha256,
        digests_sha256={split: tally.digests.sha256 for split, tally in tallies.items()},
        writer=written_by,
        encoding="mixed" if len(modes) > 1 else "jpeg" if modes == {JPEG} else "raw",
        sizes="one" if len(sizes) == 1 else "various",
    )


def _choose_writer(writer: str) -> tuple[str, BetonWriter]:
    """What the card says about the writer, and the writer itself."""
    if writer not in ("auto", "ffcv", "raw"):
        raise UserError(f"writer {writer}: choose one of auto, ffcv, raw")
    if writer == "ffcv" or (writer == "auto" and importlib.util.find_spec("ffcv") is not None):
        try:
            from data_prep.ffcv_writer import write_with_ffcv

            return f"ffcv {importlib.metadata.version('ffcv')}", write_with_ffcv
        except ImportError as error:
            if writer == "ffcv":
                fix = "`python -m fastwi.doctor` says what is missing, or pass --writer raw"
                raise UserError(f"ffcv: cannot be imported ({error}); {fix}") from error
    return f"fastwi {__version__}", _write_raw


def _write_raw(
    path: Path,
    images: Iterator[StoredImage],
    labels_N: np.ndarray,
    page_size: int,
    progress: Callable[[int], None],
) -> None:
    with open(path, "wb") as stream:
        write_stored_stream(stream, images, labels_N, page_size, progress)


def _check_written(temporary: Path, final: Path, digests: ImageDigests) -> str:
    """Read the new file back, as a full disk or a faulty one may lose bytes without an error: its `stored_sha256`."""
    try:
        beton = StoredBeton(temporary)
        beton.hold_to(digests)
        sha256 = stored_sha256(beton)
        beton.close()
    except BetonError as error:
        fix = "check the disk and its free space"
        raise UserError(f"{final}: does not read back as it was written; {fix}") from error
    # The long flush belongs here, where earlier files still stand whole, not between their replacements.
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    return sha256
