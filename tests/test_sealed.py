"""Sealed files: what was written comes back, and nothing else does."""

import contextlib
import json
import math

import pytest

from fastwi.errors import CheckpointError
from fastwi.sealed import file_sha256, read_sealed, sha256_of, write_sealed

VALUE = {"name": "é", "numbers": [1, 2.5, 1e-300], "nested": {"yes": True, "none": None}}


def test_what_was_written_comes_back(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    assert read_sealed(path, "again") == VALUE
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))  # the values are sealed, not the blanks
    assert read_sealed(path, "again") == VALUE


def test_numbers_that_are_not_finite_are_strings(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, {"a": [math.nan, math.inf, -math.inf]})
    assert read_sealed(path, "again") == {"a": ["NaN", "Infinity", "-Infinity"]}


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[place] ^= 1 << bit
            path.write_bytes(content)
            with contextlib.suppress(CheckpointError):
                # What passes is another blank, or another way to write the same value.
                assert read_sealed(path, "again") == VALUE


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"a": 1}', b"[" * 100_000, b"\xff"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json: .*; again"):
        read_sealed(path, "again")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"a\.json: cannot be read"):
        read_sealed(path, "again")


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == sha256_of(content)
