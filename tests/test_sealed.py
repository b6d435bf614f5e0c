"""Sealed files: what was written comes back, and nothing else does."""

import contextlib
import json
import math

import pytest

from fastwi.config.read import config_from_mapping, read_request
from fastwi.config.write import to_yaml
from fastwi.errors import CheckpointError, ConfigError
from fastwi.sealed import (
    file_sha256,
    is_sealed,
    open_directory,
    read_sealed,
    seal_directory,
    sealed_yaml,
    sha256_of,
    write_sealed,
)

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


def test_a_directory_is_what_its_manifest_says(tmp_path):
    for name in ("a.parquet", "b.svg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    seal_directory(tmp_path, {"x": 1})
    (tmp_path / "notes.txt").write_text("nothing that is read again")
    assert open_directory(tmp_path, "again") == {"x": 1}
    seal_directory(tmp_path, json.loads((tmp_path / "manifest.json").read_text()))
    assert open_directory(tmp_path, "again") == {"x": 1}
    (tmp_path / "a.parquet").write_bytes(b"b.parquet")
    with pytest.raises(CheckpointError, match=r"a\.parquet: is damaged or was changed .*; again"):
        open_directory(tmp_path, "again")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(CheckpointError, match=r"a\.parquet: cannot be read"):
        open_directory(tmp_path, "again")


def test_a_flipped_bit_of_a_configuration_that_was_written(tmp_path):
    """Refused, or the same configuration: as `--config` of a run, and of a sweep."""
    config = config_from_mapping({"experiment": {"k": 3}, "optimizer": {"learning_rate": 0.05}})
    path = tmp_path / "config.yaml"
    whole = sealed_yaml(to_yaml(config)).encode()
    refused = 0
    for place in range(0, len(whole), 3):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        refused += 1
        with contextlib.suppress(ConfigError):
            assert read_request(["--config", str(path)], "fastwi.train").config == config
            refused -= 1
    assert refused > 0.9 * len(whole) / 3
    path.write_bytes(whole)
    assert read_request(["--config", str(path)], "fastwi.train").config == config
    assert is_sealed(whole.decode())
    path.write_bytes(whole.replace(b"  k: 3\n", b"  k: 4\n"))
    with pytest.raises(ConfigError, match=r"config\.yaml.*remove its last line"):
        read_request(["--config", str(path)], "fastwi.train")
    path.write_text(path.read_text().rpartition("\n#")[0])
    assert read_request(["--config", str(path)], "fastwi.train").config.experiment.k == 4
