"""The card of a dataset directory: what its two .beton files hold. Written last, it vouches for them.

card.json has a checksum of itself, `card_sha256`: what it says decides results, so a changed word must not pass.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastwi.errors import UserError

CARD_FILE = "card.json"
SPLITS = ("train", "test")
FORMAT_VERSION = 2
ENCODINGS = ("raw", "jpeg", "mixed")
SIZES = ("one", "various")
_OPTIONAL = {"encoding": "raw", "sizes": "one"}
_CHECKSUM = "card_sha256"
# Directories by these names are most likely meant to hold the dataset of that name.
_KNOWN = ("cifar10", "cifar100", "svhn", "cinic10", "digits")


@dataclass(frozen=True)
class Card:
    """A dataset of two splits, "train" and "test".

    Attributes:
        name: of the dataset.
        classes: K names; a label is an index into them.
        image_shape: height and width in pixels, channels (3); of the first training image where sizes vary.
        counts: images of each split.
        class_counts: images of each split by class, K numbers in the order of the classes.
        mean, std: of each channel over all pixels of the training images, in 0..1 (population deviation).
        source: where the images came from and what was done to them, in words.
        sha256: of each split's content, `fastwi.beton.stored_sha256` (for raw images of one size `content_sha256`).
        digests_sha256: of each split's file of image digests (`fastwi.beton.image_digests`), SHA-256.
        writer: what wrote the .beton files.
        encoding: how the images are stored: raw, jpeg, or mixed. Left out of card.json where raw.
        sizes: "one", or "various". Left out of card.json where one.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    counts: dict[str, int]
    class_counts: dict[str, tuple[int, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    sha256: dict[str, str]
    digests_sha256: dict[str, str]
    writer: str
    encoding: str = "raw"
    sizes: str = "one"

    def __post_init__(self) -> None:
        """Raise ValueError, saying which attribute cannot be."""
        _need(len(set(self.classes)) == len(self.classes) > 0, "classes", "not one or more different names")
        _need(len(self.image_shape) == 3 and min(self.image_shape) > 0, "image_shape", "not three sizes")
        _need(self.image_shape[2] == 3, "image_shape", "not of three channels")
        _need(self.encoding in ENCODINGS, "encoding", f"none of {', '.join(ENCODINGS)}")
        _need(self.sizes in SIZES, "sizes", f"none of {', '.join(SIZES)}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            _need(len(values) == 3 and all(0 <= value <= 1 for value in values), name, "not three of 0..1")
        for split in SPLITS:
            counts = self.class_counts[split]
            _need(len(counts) == len(self.classes), f"class_counts.{split}", "not one count a class")
            _need(min(counts) >= 0 and self.counts[split] > 0, f"counts.{split}", "not positive")
            _need(sum(counts) == self.counts[split], f"counts.{split}", "not the sum over classes")
            for name, digests in (("sha256", self.sha256), ("digests_sha256", self.digests_sha256)):
                digits = bool(re.fullmatch("[0-9a-f]{64}", digests[split]))
                _need(digits, f"{name}.{split}", "not 64 hexadecimal digits")

    def to_json(self) -> dict[str, Any]:
        """The card as it stands in card.json."""
        value = {"format_version": FORMAT_VERSION, **asdict(self)}
        # A default adds nothing.
        return with_checksum({key: item for key, item in value.items() if item != _OPTIONAL.get(key)})


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The content of a card.json with the checksum of all the rest of it, a wrong one replaced."""
    rest = {key: item for key, item in value.items() if key != _CHECKSUM}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, _CHECKSUM: hashlib.sha256(canonical.encode()).hexdigest()}


def beton_path(directory: str | os.PathLike[str], split: str) -> Path:
    """Where the split ("train" or "test") of the dataset in `directory` is."""
    return Path(directory) / f"{split}.beton"


def digests_path(directory: str | os.PathLike[str], split: str) -> Path:
    """Where the digests of the images of the split ("train" or "test") are."""
    return Path(directory) / f"{split}.digests"


def read_card(directory: str | os.PathLike[str]) -> Card:
    """Read and check `directory`/card.json.

    Raises:
        UserError: there is none, or it is damaged, changed or of another version.
    """
    directory = Path(directory)
    path = directory / CARD_FILE
    dataset = directory.name if directory.name in _KNOWN else "DATASET"
    mend = f"write the dataset with `python -m data_prep {dataset} --out {directory}`"
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: no dataset here ({CARD_FILE} is missing); {mend}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({str(error).splitlines()[0]}); {mend}") from error
    try:
        return card_from_json(value)
    except RecursionError as error:
        raise UserError(f"{path}: is not a card (nested too deep); {mend}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; {mend}") from error


def card_from_json(value: Any) -> Card:
    """The card that `Card.to_json` made `value` from. Raises ValueError where it is none, or was changed."""
    if not isinstance(value, dict):
        raise ValueError("is not a card (no JSON object)")
    version = value.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"has format version {version!r:.60}, this program reads {FORMAT_VERSION}")
    if with_checksum(value) != value:
        raise ValueError(f"does not match its checksum ({_CHECKSUM}): it was changed since it was written")
    value = {**_OPTIONAL, **value}
    _need_keys("", value, ("format_version", *(field.name for field in fields(Card)), _CHECKSUM))
    for key in ("counts", "class_counts", "sha256", "digests_sha256"):
        if not isinstance(value[key], dict):
            raise ValueError(f"{key} is no JSON object")
        _need_keys(f"{key}.", value[key], SPLITS)
    height, width, channels = _list("image_shape", value["image_shape"], int, 3)
    return Card(
        name=_one("name", value["name"], str),
        classes=_list("classes", value["classes"], str),
        image_shape=(height, width, channels),
        counts={split: _one(f"counts.{split}", value["counts"][split], int) for split in SPLITS},
        class_counts={split: _list(f"class_counts.{split}", value["class_counts"][split], int) for split in SPLITS},
        mean=_list("mean", value["mean"], float, 3),
        std=_list("std", value["std"], float, 3),
        source=_one("source", value["source"], str),
        sha256={split: _one(f"sha256.{split}", value["sha256"][split], str) for split in SPLITS},
        digests_sha256={
            split: _one(f"digests_sha256.{split}", value["digests_sha256"][split], str) for split in SPLITS
        },
        writer=_one("writer", value["writer"], str),
        encoding=_one("encoding", value["encoding"], str),
        sizes=_one("sizes", value["sizes"], str),
    )


def _need(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {problem}")


def _need_keys(prefix: str, value: dict[str, Any], names: tuple[str, ...]) -> None:
    for key in names:
        if key not in value:
            raise ValueError(f"{prefix}{key} is missing")
    for key in value:
        if key not in names:
            raise ValueError(f"{prefix}{key} is unknown")


def _one(name: str, value: Any, kind: type) -> Any:
    """`value`, a `kind`. An integer serves as a float; a boolean is no number; no text is empty."""
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds or value == "":
        raise ValueError(f"{name} is {value!r:.60}, not {kind.__name__}")
    return value


def _list(name: str, value: Any, kind: type, length: int | None = None) -> tuple[Any, ...]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError(f"{name} is no list{'' if length is None else f' of {length}'}")
    return tuple(_one(name, item, kind) for item in value)
