"""Image folders, or zips of them: [prefix/]train/<class>/*.png|jpg and test/<class>/..., maybe valid/ too."""

import os
import unicodedata
from pathlib import Path

import numpy as np

from data_prep.damage import ImageError
from data_prep.dataset import ImageSet, Report, Split
from data_prep.decode import DecodedImage, background_colour, decode_image
from data_prep.notes import Notes, Warn
from data_prep.trees import FileTree, join, open_tree
from fastwi.errors import UserError

_ENDINGS = (".png", ".jpg", ".jpeg")
_LAYOUT = "[prefix/]train/<class>/*.png or *.jpg and test/<class>/..."
_REPORT_EVERY = 500  # images

SplitFiles = list[tuple[str, int]]  # (path, label) of each image of a split, in order


def load_folder(
    source: str | os.PathLike[str] | None,
    *,
    name: str | None,
    size: int | None,
    with_valid: bool,
    background: str | None,
    report: Report,
    warn: Warn,
) -> ImageSet:
    """Read a whole image folder. Classes are in sorted order, images sorted by class and by file name.

    Args:
        source: the folder or the zip.
        name: the dataset's name; None: that of the folder which holds train/.
        size: resize every image to size x size pixels (bilinear, aspect ratio not kept).
        with_valid: add the images of valid/ after those of train/.
        background: the colour that images with transparent pixels are laid on; None: they are refused.
        report: called as images are decoded.
        warn: called at the end with a line for each thing that a user should know of.

    Raises:
        UserError: another layout, classes that differ between splits, a bad or odd-sized image, ...
    """
    if source is None:
        raise UserError(f"no source: pass --source, an image folder ({_LAYOUT}) or a zip of one")
    if size is not None and not 1 <= size <= 4096:
        raise UserError(f"size {size}: give 1 to 4096 pixels")
    source = Path(source)
    colour = background_colour(background)
    with open_tree(source) as tree:
        notes = Notes(background)
        base, classes, files = list_splits(tree, source, with_valid, notes)
        reader = _Reader(tree, source, size, colour, report, notes)
        splits = {split: reader.read(split, members) for split, members in files.items()}
    said = [f"image folder {source.name}"]
    said += ["valid added to train"] if with_valid else []
    said += [f"resized to {size} x {size}"] if size is not None else []
    said += notes.said()
    for line in notes.warnings():
        warn(f"{source}: {line}")
    return ImageSet(
        name=name or base or source.stem,
        classes=classes,
        train=splits["train"],
        test=splits["test"],
        source=", ".join(said),
    )


def list_splits(
    tree: FileTree, source: Path, with_valid: bool, notes: Notes
) -> tuple[str, tuple[str, ...], dict[str, SplitFiles]]:
    """The folder that holds train/, the classes, the files of "train" and "test". Raises what `load_folder` does."""
    base = _find_base(tree, source)
    parts = {"train": ["train", "valid"] if with_valid else ["train"], "test": ["test"]}
    files = {part: _list_part(tree, source, join(base, part)) for split in parts for part in parts[split]}
    classes = tuple(files["train"])
    _check_names(source, classes, notes)
    for part in files:
        _check_classes(source, classes, tuple(files[part]), join(base, part))
    notes.left_out(_left_out(tree, [join(base, part) + "/" for part in files]))
    splits = {
        split: [
            (path, label) for part in members for label, paths in enumerate(files[part].values()) for path in paths
        ]
        for split, members in parts.items()
    }
    return base, classes, splits


def _find_base(tree: FileTree, source: Path) -> str:
    """The one folder, the root or right below it, that holds train/."""
    folders, _ = tree.entries("")
    if "train" in folders:
        return ""
    bases = [folder for folder in folders if "train" in tree.entries(folder)[0]]
    if not bases:
        raise UserError(f"{source}: holds no train/ folder; lay it out as {_LAYOUT}")
    if len(bases) > 1:
        raise UserError(f"{source}: holds {bases[0]}/train and {bases[1]}/train; give a source with one of them")
    return bases[0]


def _list_part(tree: FileTree, source: Path, part: str) -> dict[str, list[str]]:
    """class -> paths of its images, for one of train, valid, test."""
    parent, _, name = part.rpartition("/")
    if name not in tree.entries(parent)[0]:
        raise UserError(f"{source}: holds no {part}/ folder; lay it out as {_LAYOUT}")
    classes, strays = tree.entries(part)
    for file in strays:
        if file.lower().endswith(_ENDINGS):
            raise UserError(f"{source}: {part}/{file}: lies in no class folder; move it into one")
    if not classes:
        raise UserError(f"{source}: {part}/ holds no class folders; lay it out as {_LAYOUT}")
    return {name: _list_class(tree, source, join(part, name)) for name in classes}


def _list_class(tree: FileTree, source: Path, folder: str) -> list[str]:
    folders, files = tree.entries(folder)
    if folders:
        raise UserError(f"{source}: {folder}/{folders[0]}/ lies too deep; move its images up into {folder}/")
    for file in files:
        if not file.lower().endswith(_ENDINGS):
            raise UserError(f"{source}: {folder}/{file}: neither .png nor .jpg; convert or remove it")
    if not files:
        raise UserError(f"{source}: {folder}/ holds no images; add some or remove the class")
    return [join(folder, file) for file in files]


def _left_out(tree: FileTree, parts: list[str]) -> list[str]:
    """Hidden images, and hidden folders where classes and images are."""
    paths = [path for path in tree.hidden if path.startswith(tuple(parts))]
    return sorted(path for path in paths if path.lower().endswith((*_ENDINGS, "/")))


def _plain(name: str) -> str:
    """A name as people read it: one spelling for each character that Unicode can spell in several ways."""
    return unicodedata.normalize("NFC", name)


def _check_names(source: Path, classes: tuple[str, ...], notes: Notes) -> None:
    """Refuse classes whose names look the same; tell of those that differ in case or spaces alone."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(_plain(name).casefold().strip(), name)
        if other is not name and _plain(other) == _plain(name):
            raise UserError(f"{source}: has class {name} twice, in two spellings of Unicode; merge the two folders")
        if other is not name:
            notes.add(f"classes {other!r} and {name!r} are taken as two; their names differ in case or spaces alone")


def _check_classes(source: Path, expected: tuple[str, ...], found: tuple[str, ...], part: str) -> None:
    odd = sorted(set(expected) ^ set(found))
    if odd:
        if len({_plain(name) for name in odd}) < len(odd):
            raise UserError(f"{source}: {part}/ spells class {odd[0]} otherwise in Unicode than train/; rename it")
        holder = f"only train/, not {part}/," if odd[0] in expected else f"{part}/, but not train/,"
        raise UserError(f"{source}: {holder} has class {odd[0]}; all splits need the same classes")


class _Reader:
    """Decodes splits one after the other. The first image decides the size that all must have."""

    def __init__(
        self,
        tree: FileTree,
        source: Path,
        size: int | None,
        background: tuple[int, int, int] | None,
        report: Report,
        notes: Notes,
    ) -> None:
        self._tree = tree
        self._source = source
        self._size = size
        self._background = background
        self._report = report
        self._notes = notes
        self._first_path = ""
        self._shape_HWC: tuple[int, ...] = ()

    def read(self, split: str, files: SplitFiles) -> Split:
        paths, labels = [path for path, _ in files], [label for _, label in files]
        first_HWC = self._decode(paths[0]).pixels_HWC
        if not self._shape_HWC:
            self._first_path, self._shape_HWC = paths[0], first_HWC.shape
        try:
            images_NHWC = np.empty((len(paths), *self._shape_HWC), dtype=np.uint8)
        except MemoryError:
            height, width = self._shape_HWC[:2]
            images = f"{len(paths)} images of {height} x {width}"
            mend = "pass --size N, or --write-mode smart"
            raise UserError(f"{self._source}: {images} do not fit memory; {mend}") from None
        stage = f"read {split}"
        for place, path in enumerate(paths):
            image = self._decode(path)
            self._notes.seen(split, path, image)
            image_HWC = image.pixels_HWC
            if image_HWC.shape != self._shape_HWC:
                raise UserError(self._odd_size(path, image_HWC))
            images_NHWC[place] = image_HWC
            if (place + 1) % _REPORT_EVERY == 0 or place + 1 == len(paths):
                self._report(stage, place + 1, len(paths))
        return Split(images_NHWC, np.array(labels, dtype=np.int64))

    def _decode(self, path: str) -> DecodedImage:
        try:
            return decode_image(self._tree.read(path), self._size, self._background)
        except ImageError as error:
            raise UserError(f"{self._source}: {path}: {error}; {error.fix}") from error

    def _odd_size(self, path: str, image_HWC: np.ndarray) -> str:
        height, width = image_HWC.shape[:2]
        first_height, first_width = self._shape_HWC[:2]
        return (
            f"{self._source}: {path} has {height} x {width} pixels, {self._first_path} has "
            f"{first_height} x {first_width}; pass --size N to resize all to N x N"
        )
