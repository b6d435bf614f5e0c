"""Dataset cards: written and read back equal; whatever is wrong with one is said in one line."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastwi.data.card import Card, card_from_json, read_card, with_checksum
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


@pytest.mark.parametrize("more", [{}, {"encoding": "mixed", "sizes": "various"}])
def test_through_json_and_back(tmp_path: Path, more: dict[str, Any]) -> None:
    card = dataclasses.replace(make_card(), **more)
    value = json.loads(json.dumps(card.to_json()))
    assert ({"encoding", "sizes"} & value.keys()) == more.keys()  # a default adds nothing
    (tmp_path / "card.json").write_text(json.dumps(value))
    assert read_card(tmp_path) == read_card(str(tmp_path)) == card_from_json(value) == card


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_card(directory)
    return str(caught.value)


def test_what_is_no_dataset_yet_says_what_to_do(tmp_path: Path) -> None:
    for name, dataset in (("cifar10", "cifar10"), ("mine", "DATASET")):
        place = tmp_path / name
        command = f"python -m data_prep {dataset} --out {place}"
        assert refusal(place).startswith(f"{place}: no dataset here (card.json is missing)")
        assert command in refusal(place)
        place.touch()
        assert command in refusal(place)
    (tmp_path / "images" / "train" / "cat").mkdir(parents=True)
    assert f"python -m data_prep folder --source {tmp_path / 'images'} --out " in refusal(tmp_path / "images")
    (tmp_path / "train.beton").touch()
    assert refusal(tmp_path / "train.beton").endswith(f": {tmp_path}")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b'"card"', b"1", None])
def test_no_card_but_something_else(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        (tmp_path / "card.json").mkdir()
    else:
        (tmp_path / "card.json").write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'card.json'}: ")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format_version", None, "format version None, this program reads 2"),
        ("format_version", 1, "format version 1, this program reads 2"),
        ("colour", 1, "colour"),
        ("counts", 7, "counts"),
        ("counts", {"train": 5}, "counts: .* train and test"),
        ("counts", {"train": 5, "test": 2, "valid": 1}, "counts: .* train and test"),
        ("counts", {"train": 6, "test": 2}, r"counts\.train must be the sum"),
        ("counts", {"train": 5, "test": 1}, r"counts\.test must be the sum"),
        ("counts", {"train": True, "test": 2}, r"counts\.train"),
        ("counts", {"train": 5.0, "test": 2}, r"counts\.train"),
        ("class_counts", {"train": [5], "test": [2, 0]}, r"class_counts\.train must have one count a class"),
        ("class_counts", {"train": [6, -1], "test": [2, 0]}, r"class_counts\.train\.1"),
        ("classes", ["a", "a"], "classes: .* different"),
        ("classes", [], "classes"),
        ("classes", ["a", ""], r"classes\.1"),
        ("classes", "ab", "classes"),
        ("image_shape", [8, 6], r"image_shape\.2"),
        ("image_shape", [8, 0, 3], r"image_shape\.1"),
        ("image_shape", [8, 6, 1], r"image_shape\.2"),
        ("mean", [0.5, 0.5, 1.5], r"mean\.2"),
        ("mean", [0.5, 0.5], "mean"),
        ("std", [0.5, 0.5, float("nan")], r"std\.2"),
        ("std", [0.5, "x", 0.5], r"std\.1"),
        ("sha256", {"train": "0" * 64, "test": "F" * 64}, r"sha256\.test"),
        ("digests_sha256", {"train": "0" * 64, "test": "e" * 63}, r"digests_sha256\.test"),
        ("name", None, "name"),
        ("source", "", "source"),
        ("encoding", "png", "encoding"),
        ("sizes", 3, "sizes"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, key: str, value: Any, said: str) -> None:
    changed = json.loads(json.dumps(make_card().to_json())) | {key: value}
    (tmp_path / "card.json").write_text(json.dumps(with_checksum(changed)))
    assert re.search(rf"/card\.json: .*\b{said}.* `python -m data_prep", refusal(tmp_path))


def test_what_is_missing_is_said() -> None:
    whole = make_card().to_json()
    for key in whole.keys() - {"card_sha256"}:
        with pytest.raises(ValueError, match=key.replace("_", ".")):
            card_from_json(with_checksum({name: value for name, value in whole.items() if name != key}))


def test_any_change_of_a_value_is_refused(tmp_path: Path) -> None:
    whole = make_card().to_json()
    for key, value in whole.items():
        changed = value + "0" if isinstance(value, str) else [*value] if isinstance(value, dict) else None
        (tmp_path / "card.json").write_text(json.dumps({**whole, key: changed}))
        assert ("version" if key == "format_version" else "checksum") in refusal(tmp_path)
