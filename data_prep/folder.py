"""Image folders, or zips of them: [prefix/]train/<class>/*.png|jpg and test/<class>/..., maybe valid/ too."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.dataset import ImageSet
from data_prep.decode import ImageError, background_colour, decode_image
from data_prep.layout import LAYOUT, read_layout
from data_prep.trees import FileTree, open_tree
from fastwi.beton import StoredImage
from fastwi.beton.format import JPEG, RAW
from fastwi.data.decode import decode_jpeg
from fastwi.errors import UserError

QUALITY = 95  # of JPEGs made of images that are not JPEGs
WRITE_MODES = {"raw": [], "smart": ["JPEG files as they are"], "jpeg": [f"as JPEG, quality {QUALITY}"]}

# What the card says was done to pixels, and what a user is warned of.
_DONE = {
    "turned": "turned as EXIF says",
    "flattened": "with transparency laid on {background}",
    "cmyk": "from CMYK by a plain formula",
}
_WARNINGS = {
    "cmyk": "of CMYK: ink became colour by a plain formula, not by a profile",
    "profile": "with a colour profile or gamma other than sRGB's: it is not applied, values are taken as they are",
    "leaked": "of the test split with the same pixels as a training image",
    "unchecked": "not checked for damage that Pillow passes over: simplejpeg cannot read them, or is not installed",
}


@dataclass(frozen=True)
class Options:
    """How a folder's images are stored; `data_prep.prepare` explains each."""

    size: int | None = None
    with_valid: bool = False
    write_mode: str = "raw"
    keep_size: bool = False
    background: str | None = None


@contextmanager
def open_folder(
    source: str | os.PathLike[str] | None, name: str | None, options: Options, warn: Callable[[str], None]
) -> Iterator[ImageSet]:
    """The image folder or zip `source` as a dataset whose images are read while the block runs.

    Classes are in sorted order, images sorted by class and by file name. `name`: the dataset's; None: that of the
    folder which holds train/. At the block's end `warn` gets one line for each thing that a user should know of.
    Raises UserError for another layout or classes that differ between splits and, as images are read, a bad image.
    """
    if source is None:
        raise UserError(f"no source: pass --source, an image folder ({LAYOUT}) or a zip of one")
    if options.size is not None and not 1 <= options.size <= 4096:
        raise UserError(f"size {options.size}: give 1 to 4096 pixels")
    source = Path(source)
    background = background_colour(options.background)
    with open_tree(source) as tree:
        layout = read_layout(tree, source, options.with_valid)
        train, test = (_FolderSplit(tree, source, options, background, layout.files[split]) for split in layout.files)
        test.others = train.seen

        def count(note: str) -> list[str]:
            return train.notes.get(note, []) + test.notes.get(note, [])

        said = [f"image folder {source.name}"]
        said += ["valid added to train"] if options.with_valid else []
        said += [f"resized to {options.size} x {options.size}"] if options.size is not None else []
        said += WRITE_MODES[options.write_mode]
        said += ["sizes kept"] if options.keep_size else []
        yield ImageSet(
            name or layout.base or Path(os.path.abspath(source)).stem or "folder",
            layout.classes,
            train,
            test,
            ", ".join(said),
            keep_size=options.keep_size,
            notes=lambda: [
                f"{len(count(note)):,} {text.format(background=options.background)}"
                for note, text in _DONE.items()
                if count(note)
            ],
        )
        for line in layout.warnings:
            warn(f"{source}: {line}")
        for note, text in _WARNINGS.items():
            paths = count(note)
            if paths:
                images = "images" if len(paths) > 1 else "image"
                warn(f"{source}: {len(paths):,} {images} {text} (such as {paths[0]})")


@dataclass
class _FolderSplit:
    """`data_prep.dataset.Images` of files.

    files: (path, label). notes: kind -> paths of the images that have it (`DecodedImage.notes`, and "leaked"). seen:
    digests of all pixels; others: those of the split that this one must not share images with.
    """

    tree: FileTree
    source: Path
    options: Options
    background: tuple[int, int, int] | None
    files: list[tuple[str, int]]
    notes: dict[str, list[str]] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)
    others: set[bytes] = field(default_factory=set)

    @property
    def labels_N(self) -> np.ndarray:
        return np.array([label for _, label in self.files], np.int64)

    def where(self, n: int) -> str:
        return f"{self.source}: {self.files[n][0]}"

    def stored(self) -> Iterator[tuple[StoredImage, np.ndarray]]:
        self.notes.clear()
        self.seen.clear()
        for path, _ in self.files:
            data = self.tree.read(path)
            try:
                image = decode_image(data, self.options.size, self.background)
            except ImageError as error:
                raise UserError(f"{self.source}: {path}: {error}; {error.fix}") from error
            pixels_HWC, mode = image.pixels_HWC, self.options.write_mode
            height, width = pixels_HWC.shape[:2]
            # Decoders of betons ignore EXIF's orientation: a JPEG that has one is stored as the pixels it shows.
            if image.jpeg and "turned" not in image.notes and mode != "raw":
                stored = StoredImage(JPEG, height, width, data)
            elif mode == "jpeg":
                stream = io.BytesIO()
                Image.fromarray(pixels_HWC).save(stream, "JPEG", quality=QUALITY)
                stored = StoredImage(JPEG, height, width, stream.getvalue())
                pixels_HWC = decode_jpeg(stored.data, height, width)
            else:
                stored = StoredImage(RAW, height, width, pixels_HWC.tobytes())
            digest = blake2b(repr(pixels_HWC.shape).encode() + pixels_HWC.tobytes(), digest_size=16).digest()
            self.seen.add(digest)
            for note in image.notes | ({"leaked"} if digest in self.others else set()):
                self.notes.setdefault(note, []).append(path)
            yield stored, pixels_HWC
