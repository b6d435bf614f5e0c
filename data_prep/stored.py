"""Image folders to betons of JPEGs, or of images of several sizes, without ever holding more than one image.

The source is read twice: once to look at every image (sizes, statistics, digest), once to write it.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.damage import ImageError
from data_prep.dataset import Report
from data_prep.decode import DecodedImage, background_colour, decode_image
from data_prep.folder import SplitFiles, list_splits
from data_prep.notes import Notes, Warn
from data_prep.trees import FileTree, open_tree
from data_prep.write import count_intensities, statistics_of_counts, write_digests
from fastwi.beton import StoredBeton, stored_sha256
from fastwi.beton.digest import StoredDigest, every_image_sha256
from fastwi.beton.format import JPEG, MAX_SIDE, RAW
from fastwi.beton.image_digests import ImageDigests, image_digest
from fastwi.beton.stored_writer import StoredImage, write_stored_stream
from fastwi.beton.stream import MAX_JPEG_PIXELS
from fastwi.data.card import CARD_FILE, SPLITS, Card, beton_path
from fastwi.data.decode import decode_jpeg
from fastwi.errors import BetonError, UserError
from fastwi.files import atomic_path, write_json
from fastwi.version import __version__

WRITE_MODES = ("raw", "jpeg", "smart")
QUALITY = 95  # of JPEGs made of images that are none
_REPORT_EVERY = 500  # images


@dataclass
class _Looked:
    """What the first reading of a split has found out."""

    labels_N: np.ndarray
    kinds_N3: np.ndarray  # mode, height, width of each image
    largest: int  # bytes of an image as stored
    sha256: str  # of StoredDigest
    digests: ImageDigests
    counts_CV: np.ndarray  # of intensities of each channel

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """Heights and widths that occur."""
        return {(height, width) for height, width in np.unique(self.kinds_N3[:, 1:], axis=0).tolist()}


class _Source:
    """Reads the images of a folder one at a time, as they are to be stored."""

    def __init__(
        self, tree: FileTree, source: Path, write_mode: str, background: tuple[int, int, int] | None
    ) -> None:
        self._tree, self._source, self._write_mode, self._background = tree, source, write_mode, background

    def image(self, path: str) -> tuple[StoredImage, DecodedImage]:
        """An image as stored, and what it decodes to."""
        data = self._tree.read(path)
        try:
            image = decode_image(data, None, self._background)
            height, width = image.pixels_HWC.shape[:2]
            if max(height, width) > MAX_SIDE or height * width > MAX_JPEG_PIXELS:
                raise ImageError(f"has {height} x {width} pixels, too many")
            # Decoders of betons ignore EXIF's orientation: a JPEG that has one is stored as the pixels it shows.
            keeps_file = image.jpeg and not image.turned and self._write_mode != "raw"
            if not keeps_file and self._write_mode != "jpeg":
                return StoredImage(RAW, height, width, image.pixels_HWC.tobytes()), image
            data = data if keeps_file else _encoded(image.pixels_HWC)
            decoded = replace(image, pixels_HWC=decode_jpeg(data, height, width))
            return StoredImage(JPEG, height, width, data), decoded
        except BetonError as error:
            raise UserError(f"{self._source}: {path}: {error}; replace or remove it") from error
        except ImageError as error:
            raise UserError(f"{self._source}: {path}: {error}; {error.fix}") from error

    def again(self, path: str, mode: int, height: int, width: int) -> StoredImage:
        """An image that `image` has seen. A JPEG file is not decoded again: the digest shows if it has changed."""
        if mode == JPEG and self._write_mode == "smart":
            return StoredImage(mode, height, width, self._tree.read(path))
        return self.image(path)[0]


def write_folder(
    source: str | os.PathLike[str] | None,
    directory: Path,
    *,
    name: str | None,
    with_valid: bool,
    write_mode: str,
    keep_size: bool,
    background: str | None,
    report: Report,
    warn: Warn,
) -> Card:
    """Write the image folder `source` into `directory` as betons and a card, and return the card.

    Both betons are read back and compared before anything in `directory` is replaced; the card comes last.

    Args:
        source: the folder or the zip.
        directory: an existing one.
        name: the dataset's name; None: that of the folder which holds train/.
        with_valid: add the images of valid/ after those of train/.
        write_mode: "smart": JPEG files as they are, others raw, so that nothing is lost; "jpeg": others encoded as
            JPEGs of quality 95; "raw": all decoded.
        keep_size: images may be of several sizes.
        background: the colour that images with transparent pixels are laid on; None: they are refused.
        report: called as images are read and written.
        warn: called at the end with a line for each thing that a user should know of.

    Raises:
        UserError: another layout, a bad image, several sizes without `keep_size`, a full disk, ...
    """
    if source is None:
        raise UserError("no source: pass --source, an image folder or a zip of one")
    source = Path(source)
    with open_tree(source) as tree, contextlib.ExitStack() as stack:
        notes = Notes(background)
        base, classes, files = list_splits(tree, source, with_valid, notes)
        images = _Source(tree, source, write_mode, background_colour(background))
        looked = {split: _look(images, split, files[split], report, notes) for split in SPLITS}
        if not keep_size:
            _check_one_size(source, looked)
        digests = {}
        for split in SPLITS:
            final = beton_path(directory, split)
            temporary = stack.enter_context(atomic_path(final))
            _write(
                temporary, images, files[split], looked[split], _progress(report, f"write {final.name}", files[split])
            )
            digests[split] = _check_written(temporary, final, looked[split].sha256)
            write_digests(stack, directory, split, looked[split].digests)
        said = [f"image folder {source.name}"]
        said += ["valid added to train"] if with_valid else []
        said += {"raw": [], "smart": ["JPEG files as they are"], "jpeg": [f"as JPEG, quality {QUALITY}"]}[write_mode]
        said += ["sizes kept"] if keep_size else []
        said += notes.said()
        card = _card(name or base or source.stem, classes, looked, digests, ", ".join(said))
        (directory / CARD_FILE).unlink(missing_ok=True)
    write_json(directory / CARD_FILE, card.to_json())
    for line in notes.warnings():
        warn(f"{source}: {line}")
    return card


def _encoded(pixels_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _look(images: _Source, split: str, files: SplitFiles, report: Report, notes: Notes) -> _Looked:
    digest = StoredDigest(len(files))
    counts_CV = np.zeros((3, 256), np.int64)
    kinds_N3, largest = np.zeros((len(files), 3), np.int64), 0
    each: list[bytes] = []
    for n, (path, label) in enumerate(files):
        stored, image = images.image(path)
        notes.seen(split, path, image)
        digest.update(stored.mode, stored.height, stored.width, stored.data)
        each.append(image_digest(stored.mode, stored.height, stored.width, label, stored.data))
        count_intensities(counts_CV, image.pixels_HWC)
        kinds_N3[n] = stored.mode, stored.height, stored.width
        largest = max(largest, len(stored.data))
        if (n + 1) % _REPORT_EVERY == 0 or n + 1 == len(files):
            report(f"read {split}", n + 1, len(files))
    labels_N = np.array([label for _, label in files], np.int64)
    digests = ImageDigests.of(each, labels_N)
    return _Looked(labels_N, kinds_N3, largest, digest.finish(labels_N), digests, counts_CV)


def _check_one_size(source: Path, looked: dict[str, _Looked]) -> None:
    sizes = sorted(looked["train"].sizes | looked["test"].sizes)
    if len(sizes) > 1:
        found = f"{sizes[0][0]} x {sizes[0][1]} to {sizes[-1][0]} x {sizes[-1][1]}"
        raise UserError(f"{source}: images are of {len(sizes)} sizes, {found} pixels; pass --keep-size, or --size N")


def _write(path: Path, images: _Source, files: SplitFiles, looked: _Looked, progress: Callable[[int], None]) -> None:
    def every_image() -> Iterator[StoredImage]:
        for (file, _), kind in zip(files, looked.kinds_N3.tolist(), strict=True):
            yield images.again(file, *kind)

    with open(path, "wb") as stream:
        write_stored_stream(stream, every_image(), looked.labels_N, looked.largest, progress)


def _progress(report: Report, stage: str, files: SplitFiles) -> Callable[[int], None]:
    return lambda done: report(stage, done, len(files))


def _check_written(temporary: Path, final: Path, sha256: str) -> str:
    """Read the new file back, and return the digest of its content that belongs into the card."""
    problem = "does not read back as it was read; the source has changed meanwhile, or check the disk"
    try:
        beton = StoredBeton(temporary)
        intact = every_image_sha256(beton) == sha256
        content = stored_sha256(beton)
        beton.close()
    except BetonError as error:
        raise UserError(f"{final}: {problem}") from error
    if not intact:
        raise UserError(f"{final}: {problem}")
    # The long flush belongs here, where earlier files still stand whole, not between their replacements.
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    return content


def _card(
    name: str, classes: tuple[str, ...], looked: dict[str, _Looked], digests: dict[str, str], source: str
) -> Card:
    mean, std = statistics_of_counts(looked["train"].counts_CV)
    modes = {int(mode) for found in looked.values() for mode in np.unique(found.kinds_N3[:, 0])}
    height, width = looked["train"].kinds_N3[0, 1:].tolist()
    sizes = looked["train"].sizes | looked["test"].sizes
    return Card(
        name=name,
        classes=classes,
        image_shape=(height, width, 3),
        counts={split: len(found.labels_N) for split, found in looked.items()},
        class_counts={
            split: tuple(np.bincount(found.labels_N, minlength=len(classes)).tolist())
            for split, found in looked.items()
        },
        mean=mean,
        std=std,
        source=source,
        sha256=digests,
        digests_sha256={split: found.digests.sha256 for split, found in looked.items()},
        writer=f"fastwi {__version__}",
        encoding="mixed" if len(modes) > 1 else "jpeg" if modes == {JPEG} else "raw",
        sizes="one" if len(sizes) == 1 else "various",
    )
