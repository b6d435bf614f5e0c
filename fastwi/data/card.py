"""The card of a dataset directory: what its two .beton files hold. Written last, it vouches for them.

card.json has a checksum of itself, `card_sha256`: what it says decides results, so a changed word must not pass.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from fastwi.errors import UserError
from fastwi.sealed import checksum_of

CARD_FILE = "card.json"
SPLITS = ("train", "test")
FORMAT_VERSION = 2
_DEFAULTS = {"encoding": "raw", "sizes": "one"}  # left out of card.json
_CHECKSUM = "card_sha256"
# Directories by these names are most likely meant to hold the dataset of that name.
_KNOWN = ("cifar10", "cifar100", "svhn", "cinic10", "digits")


def _both_splits(value: dict[str, Any]) -> dict[str, Any]:
    if value.keys() != set(SPLITS):
        raise ValueError(f"must have the keys {' and '.join(SPLITS)}, no others")
    return value


_Value = TypeVar("_Value")
_BySplit = Annotated[dict[str, _Value], AfterValidator(_both_splits)]
_Text = Annotated[str, Field(min_length=1)]
_Positive = Annotated[int, Field(gt=0)]
_Count = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Card:
    """A dataset of two splits, "train" and "test". Raises ValueError where an attribute cannot be.

    Attributes:
        classes: K names; a label is an index into them.
        image_shape: height and width in pixels, channels (3); of the first training image where sizes vary.
        counts, class_counts: images of each split, and K numbers of them by class.
        mean, std: of each channel over all pixels of the training images, in 0..1 (population deviation).
        source: where the images came from and what was done to them, in words. writer: what wrote the betons.
        sha256, digests_sha256: of each split, `StoredBeton.sha256` and the SHA-256 of its file of image digests.
    """

    name: _Text
    classes: Annotated[tuple[_Text, ...], Field(min_length=1)]
    image_shape: tuple[_Positive, _Positive, Literal[3]]
    counts: _BySplit[_Positive]
    class_counts: _BySplit[tuple[_Count, ...]]
    mean: Annotated[tuple[_Share, ...], Field(min_length=3, max_length=3)]
    std: Annotated[tuple[_Share, ...], Field(min_length=3, max_length=3)]
    source: _Text
    sha256: _BySplit[_Sha256]
    digests_sha256: _BySplit[_Sha256]
    writer: _Text
    encoding: Literal["raw", "jpeg", "mixed"] = "raw"
    sizes: Literal["one", "various"] = "one"

    @model_validator(mode="after")
    def _values_agree(self) -> "Card":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: names must be different")
        for split in SPLITS:
            if len(self.class_counts[split]) != len(self.classes):
                raise ValueError(f"class_counts.{split} must have one count a class")
            if sum(self.class_counts[split]) != self.counts[split]:
                raise ValueError(f"counts.{split} must be the sum over classes")
        return self

    def to_json(self) -> dict[str, Any]:
        """The content of card.json."""
        value = {"format_version": FORMAT_VERSION, **asdict(self)}
        return with_checksum({key: item for key, item in value.items() if item != _DEFAULTS.get(key)})


_CARD = TypeAdapter(Card)


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The content of a card.json with the checksum of all the rest of it, a wrong one replaced."""
    rest = {key: item for key, item in value.items() if key != _CHECKSUM}
    return {**rest, _CHECKSUM: checksum_of(rest)}


def beton_path(directory: str | os.PathLike[str], split: str) -> Path:
    """Where the split ("train" or "test") of the dataset in `directory` is."""
    return Path(directory) / f"{split}.beton"


def digests_path(directory: str | os.PathLike[str], split: str) -> Path:
    """Where the digests of the images of the split ("train" or "test") are."""
    return Path(directory) / f"{split}.digests"


def read_card(directory: str | os.PathLike[str]) -> Card:
    """Read `directory`/card.json. Raises UserError where it is missing, damaged, changed or of another version."""
    directory = Path(directory)
    path = directory / CARD_FILE
    dataset = directory.name if directory.name in _KNOWN else "DATASET"
    fix = f"write the dataset with `python -m data_prep {dataset} --out {directory}`"
    try:
        return card_from_json(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        if directory.suffix == ".beton":
            fix = f"give the directory of its dataset: {directory.parent}"
        elif (directory / "train").is_dir():
            command = f"python -m data_prep folder --source {directory} --out data/{directory.name}"
            fix = f"this is an image folder; write the dataset with `{command}`"
        raise UserError(f"{directory}: no dataset here ({CARD_FILE} is missing); {fix}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    except (ValueError, RecursionError) as error:  # JSON's errors are of this kind too
        raise UserError(f"{path}: is not a card ({str(error).splitlines()[0]}); {fix}") from error


def card_from_json(value: Any) -> Card:
    """The card that `Card.to_json` made `value` from. Raises ValueError where it is another value or was changed."""
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    version = value.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"it has format version {version!r:.60}, this program reads {FORMAT_VERSION}")
    if with_checksum(value) != value:
        raise ValueError(f"it does not match its checksum {_CHECKSUM}: it was changed since it was written")
    rest = {key: item for key, item in value.items() if key not in ("format_version", _CHECKSUM)}
    try:
        return _CARD.validate_json(json.dumps(rest))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")) from None
