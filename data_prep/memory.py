"""Images that a program holds, as a dataset's directory: the same files, names and checks as for every other set.

Shapes: N images, H W in pixels, 3 channels.
"""

import itertools
import operator
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.dataset import ImageSet, Split
from data_prep.decode import MODES, ImageError, without_alpha
from data_prep.progress import silent
from data_prep.write import output_directory, write_dataset
from fastwi.beton import StoredBeton, content_sha256
from fastwi.beton.digests import read_digests
from fastwi.beton.format import MAX_SIDE
from fastwi.data.card import SPLITS, beton_path, digests_path, read_card
from fastwi.errors import UserError
from fastwi.files import locked
from fastwi.sealed import sha256_of

_MOST_CLASSES = 1_000_000  # larger labels are no indices: all classes up to the largest have a name in the card


def write_memory(train: Any, test: Any, within: str | os.PathLike[str]) -> Path:
    """Write two splits to a directory in `within` that is named by their content, unless it is there; return it.

    train and test are each a pair (images uint8 [N, H, W, 3] in RGB, labels integers [N]) of arrays or tensors, or a
    map-style dataset, such as torchvision's, whose items are (image, label): a PIL image or a uint8 array [H, W, 3],
    and an integer. All images are of one size. Raises UserError for anything else.
    """
    splits = {"train": _split("train", train), "test": _split("test", test)}
    sizes = ["{} x {}".format(*split.images_NHWC.shape[1:3]) for split in splits.values()]
    if sizes[0] != sizes[1]:
        raise UserError(f"test: images of {sizes[1]} pixels, those of train have {sizes[0]}; resize them to one size")
    _check_same_classes(train, test)
    classes = _classes(train, max(int(split.labels_N.max()) for split in splits.values()))
    sha256 = {name: content_sha256(splits[name].images_NHWC, splits[name].labels_N) for name in SPLITS}
    content = "\n".join([*sha256.values(), *classes]).encode()
    directory = Path(within) / sha256_of(content)[:16]
    if _is_whole(directory, sha256):
        return directory
    # Two processes that write it at one time would each take away the card that the other has just written.
    with output_directory(directory), locked(Path(within) / ".lock", exclusive=True):
        if not _is_whole(directory, sha256):
            name = "arrays" if isinstance(train, tuple) else type(train).__name__
            dataset = ImageSet(name, classes, splits["train"], splits["test"], "a program's memory")
            write_dataset(dataset, directory, "raw", silent)
    return directory


def _is_whole(directory: Path, sha256: Mapping[str, str]) -> bool:
    """Whether the dataset is there, every image of it: `data_prep` could not write it again."""
    try:
        card = read_card(directory)
        for name in SPLITS:
            read_digests(digests_path(directory, name), card.digests_sha256[name])
            with closing(StoredBeton(beton_path(directory, name))) as beton:
                if content_sha256(beton.read_raw(), beton.labels_N) != sha256[name]:
                    return False
    except UserError:  # one of the files is missing or damaged
        return False
    return card.sha256 == sha256


def _split(name: str, given: Any) -> Split:
    if isinstance(given, tuple) and len(given) == 2:
        try:
            images_NHWC, labels_N = map(_array, given)
        except (TypeError, ValueError) as error:  # images of several sizes, or tensors that NumPy does not know
            raise UserError(f"{name}: not a pair of arrays: {error}; give (images, labels)") from None
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        images_NHWC, labels_N = _items(name, given)
    else:
        fix = "give a pair (images, labels), a map-style dataset of (image, label), or as train alone the path of a "
        raise UserError(f"{name}: a {type(given).__name__}; {fix}dataset's directory")
    _check(name, images_NHWC, labels_N)
    return Split(images_NHWC, labels_N.astype(np.int64))


def _array(value: Any) -> np.ndarray:
    """An array, or a tensor on any device, as an array."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _items(name: str, given: Any) -> tuple[np.ndarray, np.ndarray]:
    """All items of a map-style dataset."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for n in range(len(given)):
        where = f"{name}[{n}]"
        try:
            item = given[n]
        except (KeyError, NotImplementedError):  # a dictionary; an iterable dataset with a length
            raise UserError(f"{where}: a {type(given).__name__} without this item; count items from 0") from None
        try:
            image, label = item
            labels.append(operator.index(label))
            images.append(_pixels(image))
        except (TypeError, ValueError):
            raise UserError(f"{where}: not a pair of an image and a whole number; give (image, label)") from None
        except ImageError as error:
            raise UserError(f"{where}: {error}; convert it: image.convert('RGB')") from None
        _check(where, images[n][None], np.array(labels[n:]))
        if images[n].shape != images[0].shape:
            found, first = ("{} x {}".format(*each.shape) for each in (images[n], images[0]))
            raise UserError(f"{where}: {found} pixels, and the first image has {first}; resize them to one size")
    return np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8), np.array(labels, np.int64)


def _pixels(image: Any) -> np.ndarray:
    if not isinstance(image, Image.Image):
        return _array(image)
    if image.mode not in MODES:
        raise ImageError(f"has pixels of mode {image.mode}, not 8 bits a channel")
    return np.asarray(without_alpha(image, None)[0])


def _check(where: str, images_NHWC: np.ndarray, labels_N: np.ndarray) -> None:
    """Refuse what a beton cannot hold, and say what is usually behind it."""
    shape, fix = images_NHWC.shape, ""
    if images_NHWC.dtype != np.uint8:
        fix = "give uint8 pixels from 0 to 255, without a transform: fastwi augments and normalises them itself"
    elif len(shape) == 4 and shape[1] == 3 != shape[3]:
        fix = "give [N, H, W, 3], channels last: numpy.moveaxis(images, 1, 3)"
    elif len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        fix = "give colours, [N, H, W, 3]: one channel three times"
    elif len(shape) != 4 or shape[3] != 3 or 0 in shape or max(shape[1:3]) > MAX_SIDE:
        fix = f"give [N, H, W, 3] with 1 to {MAX_SIDE} pixels a side"
    elif labels_N.dtype.kind not in "iu" or labels_N.shape != shape[:1]:
        fix = f"give {shape[0]} integers as labels"
    elif not 0 <= labels_N.min() <= labels_N.max() < _MOST_CLASSES:
        fix = f"labels are from {labels_N.min()} to {labels_N.max()}; count classes from 0"
    if fix:
        given = f"images are {images_NHWC.dtype}{list(shape)}, labels {labels_N.dtype}{list(labels_N.shape)}"
        raise UserError(f"{where}: {given}; {fix}")


def _class_names(given: Any) -> tuple[str, ...]:
    """The names that a dataset has for its classes; none where it has no names."""
    names = getattr(given, "classes", None)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def _check_same_classes(train: Any, test: Any) -> None:
    """Refuse two lists of names. An ImageFolder numbers the folders that it finds: a label would mean two classes."""
    names, others = _class_names(train), _class_names(test)
    if not names or not others:
        return
    for label, (first, second) in enumerate(itertools.zip_longest(names, others)):
        if first != second:
            raise UserError(f"test: class {label} is {second!r}, in train {first!r}; give both the same classes")


def _classes(train: Any, largest: int) -> tuple[str, ...]:
    """The names that the dataset has for its classes, else their numbers."""
    named = _class_names(train)
    return named if all(named) and len(set(named)) == len(named) > largest else tuple(map(str, range(largest + 1)))
