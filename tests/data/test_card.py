"""Dataset cards: written and read back equal; whatever is wrong with one is said in one line."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastwi.data.card import Card, beton_path, card_from_json, digests_path, read_card, with_checksum
from fastwi.errors import UserError


def make_card() -> Card:
    return Card(
        name="letters",
        classes=("a", "b"),
        image_shape=(8, 6, 3),
        counts={"train": 5, "test": 2},
        class_counts={"train": (2, 3), "test": (2, 0)},
        mean=(0.5, 0.25, 0.0),
        std=(0.125, 0.5, 0.0),
        source="drawn",
        sha256={"train": "0" * 64, "test": "f" * 64},
        digests_sha256={"train": "1" * 64, "test": "e" * 64},
        writer="hand",
    )


def test_through_json_and_back(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps(make_card().to_json()))
    assert read_card(tmp_path) == make_card()
    assert read_card(str(tmp_path)) == make_card()


def test_paths_of_the_splits() -> None:
    assert beton_path("data/x", "test") == Path("data/x/test.beton")
    assert digests_path("data/x", "test") == Path("data/x/test.digests")


@pytest.mark.parametrize(("directory", "dataset"), [("cifar10", "cifar10"), ("mine", "DATASET")])
def test_no_card(tmp_path: Path, directory: str, dataset: str) -> None:
    with pytest.raises(UserError) as caught:
        read_card(tmp_path / directory)
    place = tmp_path / directory
    assert str(caught.value) == (
        f"{place}: no dataset here (card.json is missing); "
        f"write the dataset with `python -m data_prep {dataset} --out {place}`"
    )


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no dataset here"):
        read_card(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(UserError, match="is not JSON") as caught:
        read_card(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_card_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "card.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_card(tmp_path)


def setting(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the item at path[:-1] to path[-1]."""
    *keys, last, value = path

    def change(card: dict[str, Any]) -> None:
        for key in keys:
            card = card[key]
        card[last] = value

    return change


def removing(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        for key in keys[:-1]:
            card = card[key]
        del card[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (removing("format_version"), "has format version None, this program reads 2"),
        (setting("format_version", 1), "has format version 1, this program reads 2"),
        (removing("mean"), "mean is missing"),
        (removing("counts", "test"), "counts.test is missing"),
        (setting("colour", 1), "colour is unknown"),
        (setting("counts", "valid", 1), "counts.valid is unknown"),
        (setting("counts", 7), "counts is no JSON object"),
        (setting("counts", "train", 6), "counts.train is not the sum over classes"),
        (setting("counts", "train", True), "counts.train is True, not int"),
        (setting("counts", "train", 5.0), "counts.train is 5.0, not int"),
        (setting("class_counts", "train", [5]), "class_counts.train is not one count a class"),
        (setting("class_counts", "train", [6, -1]), "counts.train is not positive"),
        (setting("classes", ["a", "a"]), "classes is not one or more different names"),
        (setting("classes", []), "classes is not one or more different names"),
        (setting("classes", ["a", ""]), "classes is '', not str"),
        (setting("classes", "ab"), "classes is no list"),
        (setting("image_shape", [8, 6]), "image_shape is no list of 3"),
        (setting("image_shape", [8, 0, 3]), "image_shape is not three sizes"),
        (setting("image_shape", [8, 6, 1]), "image_shape is not of three channels"),
        (setting("mean", [0.5, 0.5, 1.5]), "mean is not three of 0..1"),
        (setting("std", [0.5, 0.5, float("nan")]), "std is not three of 0..1"),
        (setting("std", [0.5, "x", 0.5]), "std is 'x', not float"),
        (setting("sha256", "test", "F" * 64), "sha256.test is not 64 hexadecimal digits"),
        (setting("digests_sha256", "test", "e" * 63), "digests_sha256.test is not 64 hexadecimal digits"),
        (setting("name", None), "name is None, not str"),
        (setting("source", ""), "source is '', not str"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    value = json.loads(json.dumps(make_card().to_json()))
    change(value)
    (tmp_path / "card.json").write_text(json.dumps(with_checksum(value)))
    with pytest.raises(UserError) as caught:
        read_card(tmp_path)
    expected = f"{tmp_path / 'card.json'}: {said}; write the dataset with `python -m data_prep"
    assert str(caught.value).startswith(expected)


def test_every_bit_of_a_card_is_checked(tmp_path: Path) -> None:
    """A card with a bit flipped is refused, or says the same: white space and the case of an exponent are free."""
    path = tmp_path / "card.json"
    written = json.dumps(make_card().to_json(), indent=2).encode()
    refused = 0
    for place in range(len(written)):
        changed = bytearray(written)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read_card(tmp_path)
        except UserError:
            refused += 1
        else:
            assert found == make_card()
    assert refused > 0.8 * len(written)


@pytest.mark.parametrize(
    "change", [setting("std", 0, 0.25), setting("mean", 2, 5e-324), setting("name", "x"), removing("card_sha256")]
)
def test_a_card_that_was_changed_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(json.dumps(make_card().to_json()))
    change(value)
    (tmp_path / "card.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"card\.json: .*checksum.*python -m data_prep") as caught:
        read_card(tmp_path)
    assert "\n" not in str(caught.value)


def test_any_value_anywhere_is_a_card_or_refused() -> None:
    whole = json.loads(json.dumps(make_card().to_json()))
    odd = [None, True, -1, 10**400, 0.5, "", "x", [], [None], [[1]], {}, {"train": 1, "test": 1}]
    refused = 0
    for key in whole:
        for value in odd:
            changed = copy.deepcopy(whole) | {key: value}
            with pytest.raises(ValueError, match=r"checksum|version"):
                card_from_json(changed)
            try:
                card_from_json(with_checksum(changed))
            except ValueError:
                refused += 1
    # Only texts may be another text: name, source, writer; and the checksum is put right.
    assert refused == len(whole) * len(odd) - 3 - len(odd)


@pytest.mark.parametrize("value", [None, [], "card", 1])
def test_json_of_another_kind(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a card"):
        card_from_json(value)
