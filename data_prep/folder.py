"""Image folders, or zips of them: [prefix/]train/<class>/*.png|jpg and test/<class>/..., maybe valid/ too."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.dataset import ImageSet
from data_prep.decode import ImageError, background_colour, decode_image
from data_prep.layout import Layout
from data_prep.trees import FileTree, open_tree
from fastwi.beton import StoredImage
from fastwi.beton.format import JPEG, RAW
from fastwi.data.decode import decode_jpeg
from fastwi.errors import UserError

QUALITY = 95  # of JPEGs made of images that are not JPEGs

# What the card says was done to pixels.
_DONE = {
    "turned": "turned as EXIF says",
    "flattened": "with transparency laid on {background}",
    "cmyk": "from CMYK by a plain formula",
}
# What a user is warned of.
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

    def in_words(self) -> list[str]:
        """What the card says of them."""
        said = {
            "valid added to train": self.with_valid,
            f"resized to {self.size} x {self.size}": self.size is not None,
            "JPEG files as they are": self.write_mode == "smart",
            f"as JPEG, quality {QUALITY}": self.write_mode == "jpeg",
            "sizes kept": self.keep_size,
        }
        return [words for words, is_so in said.items() if is_so]


@contextmanager
def open_folder(source: Path, name: str | None, options: Options) -> Iterator[ImageSet]:
    """The image folder or zip `source` as a dataset whose images are read while the block runs.

    Classes and the files of each are in sorted order. `name`: None is that of the folder which holds train/.
    Raises UserError for another layout and, as images are read, a bad image.
    """
    background = background_colour(options.background)
    place = Path(os.path.abspath(source))  # "." has no name
    own_name = place.name if source.is_dir() else place.stem
    with open_tree(source) as tree:
        layout = Layout(tree, source, options.with_valid)
        seen = _Seen()
        train = _FolderSplit(tree, source, options, background, layout.files["train"], seen, is_test=False)
        test = replace(train, files=layout.files["test"], is_test=True)

        def noted(texts: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
            """Each text whose note an image has, with the paths of those images."""
            for note, text in texts.items():
                paths = [path for path, each in seen.notes.items() if note in each]
                if paths:
                    yield text, paths

        def warnings() -> list[str]:
            lines = list(layout.warnings)
            for text, paths in noted(_WARNINGS):
                images = "images" if len(paths) > 1 else "image"
                lines.append(f"{len(paths):,} {images} {text} (such as {paths[0]})")
            return [f"{source}: {line}" for line in lines]

        yield ImageSet(
            name or layout.base or own_name or "folder",
            layout.classes,
            train,
            test,
            ", ".join([f"image folder {place.name}", *options.in_words()]),
            notes=lambda: [
                f"{len(paths):,} {text}".format(background=options.background) for text, paths in noted(_DONE)
            ],
            warnings=warnings,
        )


@dataclass
class _Seen:
    """What has been read of both splits.

    notes: path -> `DecodedImage.notes`, and "leaked". pixels: digests of the training images'. size: height and width
    of the first image.
    """

    notes: dict[str, set[str]] = field(default_factory=dict)
    pixels: set[bytes] = field(default_factory=set)
    size: tuple[int, int] | None = None


@dataclass
class _FolderSplit:
    """`data_prep.dataset.Images` of files: (path, label)."""

    tree: FileTree
    source: Path
    options: Options
    background: tuple[int, int, int] | None
    files: list[tuple[str, int]]
    seen: _Seen
    is_test: bool

    @property
    def labels_N(self) -> np.ndarray:
        return np.array([label for _, label in self.files], np.int64)

    def stored(self) -> Iterator[tuple[StoredImage, np.ndarray]]:
        for path, _ in self.files:
            where = f"{self.source}: {path}"
            data = self.tree.read(path)
            try:
                image = decode_image(data, self.options.size, self.background)
            except ImageError as error:
                raise UserError(f"{where}: {error}; {error.fix}") from error
            pixels_HWC, mode = image.pixels_HWC, self.options.write_mode
            height, width = pixels_HWC.shape[:2]
            # Before some become JPEGs: a PNG made of a training JPEG, which is stored as it is, has the same pixels.
            digest = blake2b(repr(pixels_HWC.shape).encode() + pixels_HWC.tobytes(), digest_size=16).digest()
            self.seen.size = self.seen.size or (height, width)
            if not self.options.keep_size and (height, width) != self.seen.size:
                first = "{} x {}".format(*self.seen.size)
                fix = "pass --size N to resize all to N x N, or --keep-size"
                raise UserError(f"{where} has {height} x {width} pixels, the first training image has {first}; {fix}")
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
            self.seen.notes[path] = image.notes
            if not self.is_test:
                self.seen.pixels.add(digest)
            elif digest in self.seen.pixels:
                image.notes.add("leaked")
            yield stored, pixels_HWC
